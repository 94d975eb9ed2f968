"""Options of command lines: help that shows defaults and choices, and types that check values and paths.

Imports nothing heavy, so that --help and wrong options are answered at once.
"""

import argparse
from collections.abc import Callable
import math
from typing import Any

from unilip_jax.common import arguments, paths

_MANY = 1_000_000_000


class Help(argparse.RawDescriptionHelpFormatter):
  """Adds to each option's help its default, or that it is required."""

  def _get_help_string(self, action: argparse.Action) -> str:
    text = action.help or ""
    if action.required and action.option_strings:
      return f"{text} (required)"
    if not action.option_strings or "default" in text or action.nargs == 0:
      return text
    return text if action.default in (None, "", []) else f"{text} (default: %(default)s)"


def integer(least: int, most: int = _MANY) -> Callable[[str], int]:
  """Returns an argparse type: an integer within [least, most]."""
  return _checked(lambda text: arguments.integer("it", int(text), least, most),
                  f"an integer of at least {least}" + (f" and at most {most}" if most < _MANY else ""))


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
  """Returns an argparse type: a finite number within [least, most]."""
  return _checked(lambda text: arguments.number("it", float(text), least, most),
                  f"a number of at least {least:g}" + (f" and at most {most:g}" if most < math.inf else ""))


def seed(text: str) -> int:
  """Parses a seed, as an argparse type."""
  return _checked(lambda value: arguments.seed("it", int(value)),
                  "an integer from -2**63 to 2**64 - 1")(text)


def path(text: str) -> str:
  """Expands a path, as an argparse type."""
  try:
    return paths.expand(text, "it")
  except paths.PathError as error:
    raise argparse.ArgumentTypeError(str(error).removeprefix("it=").removeprefix("it ")) from error


def optional_path(text: str) -> str:
  """Expands a path that may be "", as an argparse type."""
  return path(text) if text else ""


def _checked(parse: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
  def value(text: str) -> Any:
    try:
      return parse(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from error
  return value
