"""Every command answers --help and mistakes at once: without JAX, with every option explained."""

import argparse
import importlib
import os
import pathlib
import resource
import subprocess
import sys

import pytest

from unilip_jax.common import cli, command_options
from unilip_jax.evals import __main__ as evals

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LIMIT = 1.0  # seconds of processor time; importing JAX takes two
_WITHOUT_JAX = ("import atexit, runpy, sys\n"
                "atexit.register(lambda: print('LOADED', *{m.split('.')[0] for m in sys.modules}))\n"
                "sys.argv = ['unilip', *sys.argv[1:]]\n"
                "runpy.run_module('unilip_jax.common.cli', run_name='__main__')")


def _unilip(*words, **env):
  """(exit status, output without the list of modules, {top-level modules that were imported})."""
  done = subprocess.run(
      [sys.executable, "-c", _WITHOUT_JAX, *words], capture_output=True, text=True, cwd=_ROOT,
      env=os.environ | {"PYTHONPATH": str(_ROOT)} | env, timeout=120, check=False)
  text, _, loaded = (done.stdout).rpartition("LOADED ")
  return done.returncode, text + done.stderr, set(loaded.split())


@pytest.mark.parametrize("words", [
    [], ["--help"], *([name, "--help"] for name in cli.COMMANDS),
    *(["infer", name, "--help"] for name in ("reconstruct", "generate", "edit", "chat")),
    *(["convert", name, "--help"] for name in ("import", "export", "inspect", "check")),
    *(["data", name, "--help"] for name in ("look", "blip3o", "gpt_image_edit", "sharegpt4o", "imagenet",
                                            "json_lines", "merge", "check")),
    *(["evals", name, "--help"] for name in evals.VERBS)], ids=" ".join)
def test_help_imports_no_jax(words):
  begin = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
  status, text, loaded = _unilip(*words)
  assert status in (0, 1)  # absl's --help ends with 1
  assert len(text) > 200
  assert not loaded & {"jax", "flax", "orbax", "torch", "matplotlib", "grain"}
  assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begin < _LIMIT


def test_fields_of_a_config_are_listed_without_a_workdir():
  status, text, loaded = _unilip("train", "--config=configs/gen2.py:tiny", "--help_config")
  assert status == 0
  assert text.startswith("Fields of")
  assert "--config.data.latents_dir=" in text
  assert "jax" not in loaded


_GENERATE = ("infer", "generate", "--checkpoint=c", "--prompts", "a", "--out=o")


@pytest.mark.parametrize(("words", "message"), [
    ([*_GENERATE, "--steps=0"], "at least 1"),
    ([*_GENERATE, "--guidance=nan"], "guidance=nan"),
    ([*_GENERATE, "--solver=ddim"], "'dpm' or"),
    (["infer", "generate", "--checkpoint=c", "--prompts", "a", "--out=s3://b"], "s3:// is not supported"),
    (["infer", "chat", "--checkpoint=c", "--prompts", "a", "--top_p=2"], "at most 1"),
    (["infer", "reconstruct", "--checkpoint=c", "--images", "no.png", "--out=o"], "no image no.png"),
    (["infer", "edit", "--checkpoint=c", "--images", "a", "b", "--prompts", *"abc", "--out=o"],
     "2 images, but 3 prompts"),
    (["report", "--workdir="], "is empty"),
    (["convert", "export", "--checkpoint=c", "--format=pth", "--out="], "--out is empty"),
    (["train", "--config=configs/gen2.py:tiny", "--workdir=README.md"], "README.md is a file"),
    (["train", "--config=configs/gen2.py:tiny", "--workdir=w", "--config.data.edit_share=2.0",
      "--config.optimizer.lr=-1"], "--config.data.edit_share=2.0: choose a finite number"),
    (["train", "--config=configs/gen2.py:tiny", "--workdir=w", "--config.optimizer.lr=-1"],
     "--config.optimizer.lr=-1.0: choose a finite number of at least 0"),
    (["plan", "--config=configs/gen2.py:tiny", "--workdir=w", "--config.remat.dit=some"], "'dots'"),
    (["data", "json_lines", "--kind=t2i", "--source=no.jsonl", "--out=o"], "no.jsonl does not exist"),
    (["data", "blip3o", "--source=no/*.tar", "--out=o"], "no file matches no/*.tar"),
    (["data", "check", "--out=nowhere"], "--out=nowhere does not exist"),
], ids=lambda x: None if isinstance(x, list) else x)
def test_mistakes_are_answered_without_jax_and_leave_nothing(words, message):
  before = set(_ROOT.iterdir())
  status, text, loaded = _unilip(*words)
  assert status in (1, 2)
  assert message in text
  assert "Traceback" not in text
  assert "jax" not in loaded
  assert set(_ROOT.iterdir()) == before


@pytest.mark.parametrize("columns", ["0", "1", "-1", "wide"])
def test_help_does_not_depend_on_a_screen_without_size(columns):
  assert "--workdir" in _unilip("train", "--help", COLUMNS=columns)[1]
  assert "--workdir" in _unilip("report", "--help", COLUMNS=columns)[1]


def _parsers(parser):
  yield parser
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for below in action.choices.values():
        yield from _parsers(below)


def _all_parsers():
  from unilip_jax.convert import cli as convert
  from unilip_jax.data.prepare import __main__ as prepare
  from unilip_jax.infer import __main__ as infer

  for module in (infer, convert, prepare):
    yield from _parsers(module._parser())
  yield from _evals_parsers()


def _evals_parsers():
  return [importlib.import_module(module).parser() for module in evals.VERBS.values()]


def test_every_option_is_explained_with_its_default():
  for parser in _all_parsers():
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
      if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
        continue
      assert action.help, f"{parser.prog} {action.dest}"
      if action.nargs != 0 and action.default not in (None, "", []) and "default" not in action.help:
        assert f"(default: {action.default})" in text, f"{parser.prog} {action.dest}"
      if action.required and action.option_strings:
        assert "(required)" in text


def test_every_option_of_evals_without_a_value_states_what_it_stands_for():
  for parser in _evals_parsers():
    for action in parser._actions:
      if action.option_strings and action.nargs != 0 and not (action.required or action.default):
        assert action.default == 0 or "default" in action.help, f"{parser.prog} {action.dest}"


def test_types_of_options_name_what_they_expect():
  for make, wrong in ((command_options.integer(1), "0"), (command_options.integer(0), "1.5"),
                      (command_options.path, " ")):
    with pytest.raises(argparse.ArgumentTypeError):
      make(wrong)
  assert command_options.integer(1)("3") == 3
  assert command_options.optional_path("") == ""
