"""Peak memory of a block of code in this process, from Linux' /proc."""

from collections.abc import Iterator
import contextlib
import gc
import os
import pathlib

import pytest

_STATUS = pathlib.Path("/proc/self/status")
_RESET = pathlib.Path("/proc/self/clear_refs")

needs_linux = pytest.mark.skipif(not os.path.exists(_RESET), reason="only Linux reports the peak")


@contextlib.contextmanager
def measured() -> Iterator[list[int]]:
  """Yields a list to which the block's peak is appended, in bytes above the memory before it."""
  gc.collect()
  before = _memory("VmRSS")
  _RESET.write_text("5")  # resets the peak
  peak: list[int] = []
  yield peak
  peak.append(_memory("VmHWM") - before)


def _memory(field: str) -> int:
  """Reads a field of the process's status, in bytes."""
  return next(int(line.split()[1]) * 1024 for line in _STATUS.read_text().splitlines()
              if line.startswith(field))
