"""Side-by-side measurements against PyTorch, one script per question, results as JSON."""

import os
import sys
import types

from benchmarks import config_dict

# JAX would take three quarters of a GPU's memory at its start; here PyTorch needs its part.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

try:
  import ml_collections  # noqa: F401
except ImportError:  # a lent GPU often lacks it
  sys.modules["ml_collections"] = types.ModuleType("ml_collections")
  sys.modules["ml_collections"].ConfigDict = config_dict.ConfigDict
