"""Peak memory of a block of code in this process, from Linux' /proc."""

from collections.abc import Iterator
import contextlib
import ctypes
import gc
import pathlib
import platform

import pytest

_STATUS = pathlib.Path("/proc/self/status")
_RESET = pathlib.Path("/proc/self/clear_refs")

needs_linux = pytest.mark.skipif(
    not _RESET.exists() or platform.libc_ver()[0] != "glibc", reason="only Linux reports the peak")


@contextlib.contextmanager
def measured() -> Iterator[list[int]]:
  """Yields a list to which the block's peak is appended, in bytes above the memory before it."""
  gc.collect()
  gc.freeze()  # or each collection inside the block would walk over all that earlier tests left
  ctypes.CDLL(None).malloc_trim(0)  # memory that earlier code freed would hide the block's use
  before = _memory("VmRSS")
  _RESET.write_text("5")  # resets the peak
  peak: list[int] = []
  try:
    yield peak
    peak.append(_memory("VmHWM") - before)
  finally:
    gc.unfreeze()


def _memory(field: str) -> int:
  """Reads a field of the process's status, in bytes."""
  return next(int(line.split()[1]) * 1024 for line in _STATUS.read_text().splitlines()
              if line.startswith(field))
