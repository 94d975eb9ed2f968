"""Imports point one way between rooms, and heavy ones stay where they belong."""

import ast
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "unilip_jax"

# From the bottom up: a room imports itself and the rooms before it.
_ROOMS = (
    "common", "configs", "multihost", "ops", "sharding", "models", "losses", "data", "weights", "optim",
    "rewards", "sampling", "tasks", "evals", "training", "infer", "scores", "report", "plan", "serve",
    "shapes",  # a plug-in: nothing before it imports it, and it is found by name (common/registry.py)
    "convert",  # nothing imports it: training never needs a PyTorch file
    "evaluate", "train", "main")
_TORCH = {"torch", "torchvision", "transformers", "diffusers"}


def _modules():
  return sorted(p for p in _PACKAGE.rglob("*.py") if p != _PACKAGE / "__init__.py")


def _outside_the_package():
  return sorted(p for folder in ("experiments", "launch") for p in (_ROOT / folder).glob("*.py"))


def _room(path):
  if path == _PACKAGE / "evals" / "__main__.py":
    return "main"  # the command of benchmarks: it starts what later rooms do
  return path.relative_to(_PACKAGE).parts[0].removesuffix(".py")


def _imports(path):
  """Names imported anywhere in a file, dotted."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: a relative import, line {node.lineno}"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_its_place():
  assert {_room(p) for p in _modules()} == set(_ROOMS)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(_PACKAGE)))
def test_imports_point_one_way(path):
  room = _room(path)
  for name in _imports(path):
    top, *rest = name.split(".")
    assert top not in ("tests", "benchmarks", "launch", "experiments", "configs"), f"{path} imports {name}"
    assert "templates" not in rest, f"{path.name} imports {name}, code for other programs"
    if top == "unilip_jax" and rest[0] != room:
      assert _ROOMS.index(rest[0]) < _ROOMS.index(room), f"{path.name} imports {name}, a later room"


@pytest.mark.parametrize("path", [*_modules(), *_outside_the_package()],
                         ids=lambda p: str(p.relative_to(_ROOT)))
def test_torch_and_tensorflow_stay_in_conversion(path):
  roots = {name.split(".")[0] for name in _imports(path)}
  if _PACKAGE / "convert" not in path.parents:
    assert not roots & _TORCH
  assert "tensorflow" not in roots
  assert "tensorflow_datasets" not in roots or _PACKAGE / "data" in path.parents


def _loaded_after(statement):
  code = f"{statement}; import sys; print(*sorted(m.split('.')[0] for m in sys.modules))"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       cwd=_ROOT)
  return set(out.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
  assert not _loaded_after("import unilip_jax") & {"jax", "flax", "numpy", "grain", *_TORCH}


@pytest.mark.parametrize("module", ["train", "evaluate", "report.page"])
def test_training_imports_no_torch_and_no_tensorflow(module):
  loaded = _loaded_after(f"import unilip_jax.{module}")
  assert not loaded & {"tensorflow", "tensorflow_datasets", *_TORCH}
  assert module == "report.page" or "matplotlib" not in loaded


def test_making_images_imports_what_it_uses_alone():
  loaded = _loaded_after("import unilip_jax.infer.model, unilip_jax.infer.__main__")
  assert not loaded & {"orbax", "tensorstore", "grain", "optax", "matplotlib", "tensorflow",
                       "tensorflow_datasets", *_TORCH}


def test_judging_and_scoring_import_no_jax():
  modules = ("judging", "aggregating", "comparing", "showing", "making", "listing")
  loaded = _loaded_after(f"from unilip_jax.scores import {', '.join(modules)}")
  assert not loaded & {"jax", "flax", "orbax", "grain", *_TORCH}


def test_files_hold_one_idea():
  long = {str(p.relative_to(_ROOT)): n for p in [*_modules(), *_outside_the_package()]
          if (n := len(p.read_text().splitlines())) > 350}
  assert not long


@pytest.mark.parametrize(("name", "most"), [("main", 80), ("train", 130)])
def test_the_verbs_stay_short(name, most):
  assert len((_PACKAGE / f"{name}.py").read_text().splitlines()) <= most


def test_the_root_holds_the_verbs_alone():
  assert {p.name for p in _PACKAGE.glob("*.py")} == {"__init__.py", "main.py", "train.py", "evaluate.py"}
