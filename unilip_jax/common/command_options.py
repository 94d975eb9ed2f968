"""Options of command lines: help that shows defaults and choices, and types that check values and paths.

Imports nothing heavy, so that --help and wrong options are answered at once.
"""

import argparse
from collections.abc import Callable

from unilip_jax.common import paths


class Help(argparse.RawDescriptionHelpFormatter):
  """Adds to each option's help its default, or that it is required."""

  def _get_help_string(self, action: argparse.Action) -> str:
    text = action.help or ""
    if action.required and action.option_strings:
      return f"{text} (required)"
    if not action.option_strings or "default" in text or action.nargs == 0:
      return text
    return text if action.default in (None, "", []) else f"{text} (default: %(default)s)"


def integer(least: int) -> Callable[[str], int]:
  """Returns an argparse type: an integer of at least `least`."""
  def value(text: str) -> int:
    if not text.isdigit() or int(text) < least:
      raise argparse.ArgumentTypeError(f"{text!r}: expected an integer of at least {least}")
    return int(text)
  return value


def fraction(text: str) -> float:
  """Parses a number from 0 to 1, as an argparse type."""
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0.0 <= value <= 1.0:
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")
  return value


def path(text: str) -> str:
  """Expands a path, as an argparse type."""
  try:
    return paths.expand(text, "it")
  except paths.PathError as error:
    raise argparse.ArgumentTypeError(str(error).removeprefix("it=").removeprefix("it ")) from error


def optional_path(text: str) -> str:
  """Expands a path that may be "", as an argparse type."""
  return path(text) if text else ""
