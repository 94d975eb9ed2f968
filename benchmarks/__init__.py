"""Side-by-side measurements against PyTorch, one script per question, results as JSON."""

import os

# JAX would take three quarters of a GPU's memory at its start; here PyTorch needs its part.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
