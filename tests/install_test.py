"""The installed package holds all that its commands need, and they work from any folder."""

import ast
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests import cpu_devices
from unilip_jax.common import cli

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "unilip_jax"
# etils opens gs:// with it; nothing imports it by name.
_INDIRECT = {"gcsfs", "zstandard"}
_IMPORT_NAMES = {"absl-py": "absl", "etils[epath]": "etils", "google-crc32c": "google_crc32c",
                 "orbax-checkpoint": "orbax",
                 "pillow": "PIL", "tensorflow-datasets": "tensorflow_datasets"}
_PROMISED = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "transformers",
             "ml_collections", "chex", "pytest")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A copy of what the package is built from, in a folder of the package's name as in a clone."""
  source = tmp_path_factory.mktemp("clone") / "unilip_jax"
  source.mkdir()
  for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-WEIGHTS.md", "requirements.txt",
               "requirements-plan.txt"):
    shutil.copy(_ROOT / name, source)
  shutil.copytree(_PACKAGE, source / "unilip_jax", ignore=shutil.ignore_patterns("__pycache__"))
  return source


def _build(source, folder, kind):
  code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
  subprocess.run(
      [sys.executable, "-c", code],
      cwd=source, check=True, capture_output=True, timeout=300)
  file, = folder.glob("*.whl")
  return file


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
  return _build(source, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
  """A folder outside the repository, and an environment that imports the installed package."""
  folder = tmp_path_factory.mktemp("elsewhere")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / "site")
  env = cpu_devices.environment() | {"PYTHONPATH": str(folder / "site")}
  return folder, env


def _python(elsewhere, *arguments):
  folder, env = elsewhere
  return subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True,
                        timeout=900, check=False)


def test_the_wheel_holds_every_file_of_the_package(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  files = {str(p.relative_to(_ROOT)) for p in _PACKAGE.rglob("*")
           if p.is_file() and "__pycache__" not in p.parts}
  assert files - names == set()
  for part in ("configs/stage2.py", "shapes/tokenizer.json", "shapes/weights/gen3.safetensors",
               "shapes/weights/gen3.json", "report/page.html.jinja"):
    assert f"unilip_jax/{part}" in names
  rooms = {p.parent.name for p in _PACKAGE.glob("*/__init__.py")}
  assert rooms == {p.name for p in _PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
  entry_points, = (n for n in names if n.endswith("entry_points.txt"))
  assert "unilip = unilip_jax.common.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_an_editable_install_is_imported_from_the_folder_that_holds_the_clone(source, tmp_path):
  with zipfile.ZipFile(_build(source, tmp_path, "editable")) as archive:
    archive.extractall(tmp_path / "site")
  code = (f"import importlib.util as u, site; site.addsitedir({str(tmp_path / 'site')!r}); "
          "print(u.find_spec('unilip_jax').origin)")
  done = subprocess.run(  # -S hides the tests' own install
      [sys.executable, "-S", "-c", code], cwd=source.parent, capture_output=True, text=True, timeout=60,
      check=False)
  assert done.stdout.strip() == str(source / "unilip_jax" / "__init__.py"), done.stderr


def test_configs_are_one_folder():
  assert (_ROOT / "configs").is_symlink()
  assert (_ROOT / "configs").resolve() == (_PACKAGE / "configs").resolve()


@pytest.mark.parametrize("module", sorted({module for module, _ in cli.COMMANDS.values()}))
def test_commands_name_modules_that_can_run(module):
  spec = importlib.util.find_spec(module)
  assert spec.submodule_search_locations is None or importlib.util.find_spec(f"{module}.__main__")


def test_an_unknown_command_is_refused(elsewhere):
  done = _python(elsewhere, "-m", "unilip_jax.common.cli", "trian")
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("error: unknown command 'trian'; the nearest is train. Choose train, eval")


@pytest.mark.slow
def test_commands_work_from_another_folder(elsewhere):
  folder, _ = elsewhere
  where = _python(elsewhere, "-c", "import unilip_jax; print(unilip_jax.__file__)").stdout
  assert where.startswith(str(folder))
  done = _python(
      elsewhere, "-m", "unilip_jax.common.cli", "train", "--config=configs/stage1.py:tiny", "--workdir=run",
      "--config.total_steps=1", "--config.optimizer.warmup_steps=0", "--config.eval.sets=()",
      "--config.sample_every_steps=0", "--config.batch_size=8",
      "--config.data.train=(('shapes','train',1.0,{'count':64}),)")
  assert done.returncode == 0, done.stderr[-3000:]
  done = _python(elsewhere, "-m", "unilip_jax.common.cli", "report", "--workdir=run")
  assert done.returncode == 0, done.stderr[-3000:]
  assert (folder / "run" / "report.html").exists()


def _requirements(name):
  for line in (_ROOT / name).read_text().splitlines():
    if match := re.match(r"([\w.-]+(\[\w+\])?)==", line):
      yield match[1]


def _imported():
  """First parts of all names that the package, its tests and its scripts import."""
  for folder in ("unilip_jax", "tests", "experiments"):
    for path in (_ROOT / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
          yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
          yield node.module.split(".")[0]


def test_requirements_are_used():
  required, imported = set(_requirements("requirements.txt")), set(_imported())
  assert {r for r in required if _IMPORT_NAMES.get(r, r) not in imported} - _INDIRECT == set()
  assert set(_PROMISED) <= required | set(_requirements("requirements-dev.txt"))
