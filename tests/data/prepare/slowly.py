"""`python -m tests.data.prepare.slowly ARGUMENTS…`: a preparation that takes its time, so that a test can
kill it half-way. The delay also reaches spawned workers, which run this file's top level too."""

import signal
import sys
import time

from unilip_jax.data.prepare import __main__ as prepare
from unilip_jax.data.prepare import record

_make = record.make
_count = 0


def _slowly(item, rules):
  global _count
  _count += 1
  if _count > 5:  # the first chunk comes at once
    time.sleep(1.0)  # long enough for a busy machine to act on a first chunk
  return _make(item, rules)


record.make = _slowly

if __name__ == "__main__":
  # A shell's background jobs ignore Ctrl-C, and so would this one if the tests are such a job.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  sys.exit(prepare.main())
