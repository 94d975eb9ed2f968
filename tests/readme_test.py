"""Every command and snippet of README.md and of the documents for newcomers works as printed.

How a block is checked is the marker before it (tests/markdown_blocks.py); a block without one is an error.
"""

import argparse
import ast
import importlib.util
import json
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

from absl import flags
import pytest

from tests import cpu_devices, markdown_blocks
from unilip_jax import main  # defines the flags of train, eval and plan
from unilip_jax.common import cli
from unilip_jax.configs import base, flag
from unilip_jax.data import batch as batch_lib
from unilip_jax.plan import batches, topology

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_DOCUMENTS = [_ROOT / name for name in (
    "README.md", "docs/quickstart.md", "docs/training.md", "docs/lora.md", "docs/evals.md",
    "docs/judging.md")]
_BLOCKS = [block for path in _DOCUMENTS for block in markdown_blocks.read(path)]
_SCRIPTS = ("bash", "pip")


def _blocks(*kinds):
  return [pytest.param(b, id=b.place) for b in _BLOCKS if b.kind in kinds]


def _commands(*kinds):
  return [pytest.param(words, id=f"{b.place}-{' '.join(words[:3])}")
          for b in _BLOCKS if b.kind in kinds for words in b.commands()]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
  """A folder outside the repository and the environment of a user who installed the package."""
  folder = tmp_path_factory.mktemp("readme")
  command = folder / "bin" / "unilip"
  command.parent.mkdir()
  command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unilip_jax.common.cli "$@"\n')
  command.chmod(0o755)
  env = cpu_devices.environment() | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
  return folder, env


def _run(shell, arguments):
  folder, env = shell
  done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=900,
                        check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def _parse_unilip(words, monkeypatch):
  """Parses `unilip COMMAND ...` with the parser of the command; the config of train, eval and plan."""
  module, first = cli.COMMANDS[words[1]]
  argv = [module, *first, *words[2:]]
  monkeypatch.setattr(sys, "argv", argv)
  if module == main.__name__:
    try:
      assert flag.parse(argv) == [module]
      return flag.CONFIG.value
    finally:
      flags.FLAGS.unparse_flags()
      for name in [n for n in flags.FLAGS if n.startswith("config.")]:  # overrides are flags of one parse
        delattr(flags.FLAGS, name)

  class _ParsedError(BaseException):
    """Ends a command once its arguments are read."""

  parse = argparse.ArgumentParser.parse_args

  def parse_and_stop(self, args=None, namespace=None):
    parse(self, args, namespace)
    raise _ParsedError

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
  with pytest.raises(_ParsedError):
    runpy.run_module(module, run_name="__main__")
  return None


@pytest.mark.slow
@pytest.mark.parametrize("block", _blocks("run"))
def test_blocks_that_run_do_so_as_printed(block, shell):
  if block.language == "bash":
    _run(shell, ["bash", "-euo", "pipefail", "-c", block.text])
    return
  printed = _run(shell, [sys.executable, "-c", block.text])
  expected = [b.text for b in _BLOCKS[_BLOCKS.index(block) + 1:][:1] if b.kind == "output"]
  assert printed == "".join(expected)
  for name in re.findall(r'save\("(.+?)"\)', block.text):
    assert (shell[0] / name).stat().st_size > 0


def _parse_lmms_eval(words):
  source = (_ROOT / "unilip_jax/scores/lmms_eval_plugin.py").read_text()
  model = next(c for c in ast.parse(source).body if getattr(c, "name", "") == "UniLipModel")
  init = next(f for f in model.body if getattr(f, "name", "") == "__init__").args
  known = {a.arg for a in (*init.args, *init.kwonlyargs)}
  options = dict(zip(words[1::2], words[2::2]))
  assert options.keys() <= {"--model", "--model_args", "--tasks", "--batch_size"}
  assert options["--model"] == "unilip_jax"
  assert {pair.split("=")[0] for pair in options["--model_args"].split(",")} <= known - {"self"}


@pytest.mark.parametrize("words", _commands("parse", "notebook", "plan", "install"))
def test_commands_are_accepted_by_their_parsers(words, monkeypatch):
  if words[0] == "unilip":
    _parse_unilip(words, monkeypatch)
    return
  if words[0] == "lmms-eval":  # not installed here: the options of the plug-in
    _parse_lmms_eval(words)
    return
  assert words[0] in _SCRIPTS, f"how is {words[0]} checked?"
  if words[0] == "pip":
    assert words == ["pip", "install", "-e", "."]  # tests/install_test.py
    return
  subprocess.run(["bash", "-n", words[1]], cwd=_ROOT, check=True)
  if "--dry_run" in words:
    subprocess.run(words, cwd=_ROOT, check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("path", sorted((_ROOT / "configs").glob("[gst]*.py")), ids=lambda p: p.stem)
def test_docstrings_of_stages_hold_commands_that_parse(path, monkeypatch):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  commands = re.findall(r"^  (unilip .+)$", docstring, re.MULTILINE)
  assert commands
  for command in commands:
    _parse_unilip(shlex.split(command, comments=True), monkeypatch)
  assert "\nTiny: " in docstring
  assert path.stem.startswith("tiny") or "\nHardware: " in docstring


@pytest.mark.parametrize("words", _commands("plan"))
def test_printed_plans_divide_over_their_devices(words, monkeypatch):
  config = _parse_unilip(words, monkeypatch)
  name, = (w.partition("=")[2] for w in words if w.startswith("--topology="))
  devices = topology.parse(name).size
  config, _ = batches.chosen(config, topology.parse(name))  # as the command does
  assert devices % config.mesh.fsdp == 0
  for part, size in batch_lib.part_sizes(config).items():
    assert size % devices == 0, f"{part}: {size} examples over {devices} devices"


@pytest.mark.slow
@pytest.mark.parametrize("words", _commands("plan"))
def test_printed_plans_run(words, shell):
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu, the TPU's compiler, is not installed (requirements-plan.txt)")
  _run(shell, words)
  folder, = (w.partition("=")[2] for w in words if w.startswith("--workdir="))
  assert json.loads((shell[0] / folder / "plan.json").read_text())["fits"]


@pytest.mark.parametrize("block", _blocks("config"))
def test_configs_are_executed(block):
  exec(block.text, {"c": base.get_config().lock()})  # an unknown field is an error


@pytest.mark.parametrize("path", _DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
  for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
    assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", _DOCUMENTS, ids=lambda p: p.name)
def test_files_and_folders_that_are_named_exist(path):
  folders = "configs|docs|tests|benchmarks|launch|experiments|unilip_jax"
  for name in re.findall(rf"`((?:{folders})/[\w./]*)`", path.read_text()):
    assert (_ROOT / name).exists(), name
  rooms = "|".join(p.name for p in (_ROOT / "unilip_jax").iterdir() if p.is_dir())
  for name in re.findall(rf"`((?:{rooms})/[\w./]*)`", path.read_text()):
    assert (_ROOT / "unilip_jax" / name).exists() or (_ROOT / name).exists(), name


def test_the_map_names_every_room():
  rooms = re.search(r"rooms: (.+) \|", _DOCUMENTS[0].read_text())[1]
  folders = {p.name for p in (_ROOT / "unilip_jax").iterdir() if (p / "__init__.py").exists()}
  assert set(re.findall(r"`(\w+)`", rooms)) == folders
