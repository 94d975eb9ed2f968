"""Progress bars of every command: in terminals of any size, and sparse where stderr is a file."""

from collections.abc import Iterable
import os
import sys
from typing import Any

import tqdm

_COLUMNS, _ROWS = 80, 24  # of a terminal that reports no size
_FILE_SECONDS = 30.0  # between two states of a bar in a file


def bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm.tqdm:
  """Returns a tqdm bar.

  Args:
    items: to iterate over; None for a bar that is updated by hand.
    options: of tqdm.
  """
  columns, rows = screen_size(sys.stderr)
  if not sys.stderr.isatty():
    options.setdefault("mininterval", _FILE_SECONDS)
  shown = tqdm.tqdm(items, ncols=columns, nrows=rows, **options)
  shown.dynamic_ncols = screen_size  # called at every refresh
  return shown


def screen_size(stream: Any) -> tuple[int, int]:
  """Returns (columns, rows) of the terminal behind a stream; usual ones if it reports none or 0."""
  try:
    size = os.get_terminal_size(stream.fileno())
  except (OSError, ValueError, AttributeError):  # a file, or a closed or replaced stream
    return _COLUMNS, _ROWS
  return size.columns or _COLUMNS, size.lines or _ROWS
