"""Imports point one way, and heavy ones stay where they belong."""

import ast
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "unilip_jax"

# From the bottom up: a module imports only from its own layer and those before.
_LAYERS = (
    ("tree", "presets", "batch", "state", "preemption", "orbax_io", "flops", "grids", "ops"),
    ("rules", "optimizer", "sharding", "weights", "metrics", "blocks"),
    ("models", "data"),
    ("losses",),
    ("tasks",),
    ("checkpoint", "evals"),
    ("initial", "evaluate", "samples", "report"),
    ("train",),
    ("main", "convert"),
)
_RANK = {name: rank for rank, names in enumerate(_LAYERS) for name in names}


def _modules():
  return sorted(p for p in _PACKAGE.rglob("*.py") if p != _PACKAGE / "__init__.py")


def _room(path):
  """Top-level name of a module inside the package."""
  return path.relative_to(_PACKAGE).parts[0].removesuffix(".py")


def _imports(path):
  """Names imported anywhere in a file, dotted."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(_PACKAGE)))
def test_imports_point_one_way(path):
  room = _room(path)
  assert room in _RANK, f"{room} has no place in the layers of this test"
  for name in _imports(path):
    if name.startswith("unilip_jax."):
      target = name.split(".")[1]
      assert _RANK[target] <= _RANK[room], f"{path.name} imports {target}, which stands above it"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(_PACKAGE)))
def test_torch_and_tensorflow_stay_in_conversion(path):
  roots = {name.split(".")[0] for name in _imports(path)}
  if _room(path) != "convert":
    assert not roots & {"torch", "transformers", "diffusers", "torchvision"}
  assert "tensorflow" not in roots


def _loaded_after(statement):
  code = f"{statement}; import sys; print(*sorted(m.split('.')[0] for m in sys.modules))"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       cwd=_ROOT)
  return set(out.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
  assert not _loaded_after("import unilip_jax") & {"jax", "flax", "torch", "numpy", "grain"}


def test_training_imports_no_torch_and_no_tensorflow():
  assert not _loaded_after("import unilip_jax.train") & {"torch", "tensorflow", "transformers"}


def test_files_hold_one_idea():
  long = {str(p.relative_to(_ROOT)): n for p in [*_modules(), *(_ROOT / "configs").glob("*.py")]
          if (n := len(p.read_text().splitlines())) > 400}
  assert not long
