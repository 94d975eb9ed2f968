"""The flag --config=FILE[:SIZE] and its overrides --config.FIELD=VALUE, checked before anything starts."""

from collections.abc import Iterator, Sequence
import difflib
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from unilip_jax.common import paths
from unilip_jax.configs import base, listing, renamed

_FOLDER = pathlib.Path(__file__).parent

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Stage file and size, e.g. configs/stage2.py:1b; sizes are tiny, 1b and 3b.",
    lock_config=True)
_HELP_CONFIG = flags.DEFINE_bool(
    "help_config", False, "List every field of --config with its value and meaning, and end.")
_NO_STAGES = ("__init__", "checks", "flag", "listing", "renamed", "roots")  # files of the folder
_NARROWEST = 40  # columns of a terminal; absl's help fails below its indents


def parse(argv: Sequence[str]) -> list[str]:
  """Parses a command line, for absl's app.run.

  A file that does not exist below the working directory is looked up among the installed stage files.

  Returns:
    What is left of `argv`.

  Raises:
    ValueError: for a file that fails or makes no config; for an unknown file, size or field, naming the
      nearest field or the new name of an old one.
  """
  _ignore_narrow_screen()
  argv = list(_with_path(argv))
  sources = [a for a in argv if a.startswith("--config=")]
  if sources:  # without the overrides first, so that all fields are known when one is misspelt
    alone = flags.FlagValues()
    plain = config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=[])
    config = _load(alone, plain, argv[0], sources[-1])
    if any(a.lstrip("-") in ("help_config", "help_config=true") for a in argv[1:]):
      print(listing.text(config, sources[-1].removeprefix("--config=")))
      sys.exit(0)
    _check_fields(argv, list(_fields(config)))
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:  # absl itself would suggest flags of its logging too
    own = [flag.name for module, group in flags.FLAGS.flags_by_module_dict().items()
           if not module.startswith("absl") for flag in group]
    near = "".join(f"the nearest is --{name}; "
                   for name in difflib.get_close_matches(error.flagname, own, n=1))
    raise ValueError(f"unknown flag --{error.flagname}; {near}--help lists the flags") from error
  except flags.Error as error:
    raise ValueError(f"{error}\n--help lists the flags") from error


def _load(values: flags.FlagValues, holder: Any, program: str, argument: str) -> ml_collections.ConfigDict:
  """Runs the config's file; any error of it is the user's, and named with its line."""
  path = argument.removeprefix("--config=").partition(":")[0]
  try:
    values([program, argument])
    config = holder.value
  except Exception as error:  # of the code of users
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    place = f", line {lines[-1]}" if lines else ""
    raise ValueError(f"{argument}{place}: {kind}{error}; correct the file, or start from configs/base.py"
                     ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError(f"{argument}: its get_config returns a {type(config).__name__}; return a ConfigDict")
  return config


def _ignore_narrow_screen() -> None:
  """Removes a COLUMNS that reports a screen without room, as some job schedulers set it."""
  columns = os.environ.get("COLUMNS", "")
  if columns and not (columns.isdigit() and int(columns) >= _NARROWEST):
    del os.environ["COLUMNS"]


def _with_path(argv: Sequence[str]) -> Iterator[str]:
  """Yields the arguments, `--config=FILE` or `--config FILE` with the path of a file that exists."""
  words = iter(argv)
  for word in words:
    if word == "--config":
      word = f"--config={next(words, '')}"
    if word.startswith("--config="):
      word = f"--config={_located(word.partition('=')[2])}"
    yield word


def _located(argument: str) -> str:
  """"FILE[:SIZE]" with the path of a file that exists."""
  name, _, size = argument.partition(":")
  if size and size not in base.SIZES:
    raise ValueError(f"--config={argument}: unknown size {size!r}; choose {', '.join(base.SIZES)}")
  path = pathlib.Path(paths.expand(name, "--config"))
  if not path.is_file():
    path = _FOLDER / path.name
  if not path.is_file() or (
      path.resolve().parent == _FOLDER.resolve() and path.stem in _NO_STAGES):
    stages = sorted(f"configs/{p.name}" for p in _FOLDER.glob("*.py")
                    if p.stem not in ("base", *_NO_STAGES))
    near = difflib.get_close_matches(f"configs/{path.stem}.py", stages, n=1, cutoff=0.0)[0]
    raise ValueError(f"--config={argument}: no such file {name}; the nearest is {near}. Installed are "
                     f"{', '.join(stages)}")
  return f"{path}:{size}" if size else str(path)


def _check_fields(argv: Sequence[str], fields: Sequence[str]) -> None:
  for argument in argv:
    if not argument.startswith("--config."):
      continue
    name = argument.removeprefix("--config.").split("=", 1)[0]
    if name in renamed.FIELDS:
      raise ValueError(f"--config.{name}: {renamed.message(name)}")
    if name not in fields:
      near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]
      raise ValueError(f"--config.{name}: no such field; the nearest is --config.{near}")


def _fields(config: Any, prefix: str = "") -> Iterator[str]:
  """Dotted names of all fields."""
  for key, value in config.items():
    yield prefix + key
    if isinstance(value, type(config)):
      yield from _fields(value, f"{prefix}{key}.")
