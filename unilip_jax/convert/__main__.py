"""Runs the command line of conversion (cli.py) on the CPU."""

import os
import sys

# Conversion is work of the CPU: it must not take an accelerator from a run on the same machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from unilip_jax.convert import cli

if __name__ == "__main__":
  sys.exit(cli.main())
