"""The server of hostile.py: prints its port, and runs until its standard input is closed."""

import sys

from tests.serve import fakes
from unilip_jax.serve import options

LIMITS = options.Limits(body_bytes=2 * 2**20, open_bytes=8 * 2**20, read_seconds=0.5, pixels=2**20)

if __name__ == "__main__":
  with fakes.running(limits=LIMITS) as running:
    print(running.port, flush=True)
    sys.stdin.read()
