"""Records time and peak memory of each test."""

import gc
import pathlib
import time

import jax
import pytest

from tests import parity


@pytest.fixture(autouse=True)
def _usage():
  """Frees what an earlier test left, then records seconds and the peak of resident memory (Linux)."""
  jax.clear_caches()
  gc.collect()
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
  start = time.monotonic()
  yield
  status = pathlib.Path("/proc/self/status").read_text()
  peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
  parity.record(seconds=time.monotonic() - start, peak_gb=peak * 1024 / 1e9)
