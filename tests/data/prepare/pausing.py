"""`python -m tests.data.prepare.pausing ARGUMENTS…`: a preparation that pauses, so that a test can kill it.

Each process makes 6 records, then waits until the file $UNILIP_TEST_RELEASE exists. Spawned workers import
this file and pause too."""

import os
import pathlib
import signal
import time

from unilip_jax.data.prepare import __main__ as prepare
from unilip_jax.data.prepare import record

_make = record.make
_release = pathlib.Path(os.environ["UNILIP_TEST_RELEASE"])
_count = 0


def _make_after_release(item, rules):
  global _count
  _count += 1
  while _count > 6 and not _release.exists():  # after the first chunk of 4 records, or tar of 6
    time.sleep(0.02)
  return _make(item, rules)


record.make = _make_after_release

if __name__ == "__main__":
  # A shell's background jobs ignore Ctrl-C, and so would this process if the tests are such a job.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  prepare.run_command()
