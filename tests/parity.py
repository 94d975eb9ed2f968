"""One definition of agreement with a PyTorch twin, and a record of the worst error per module."""

import json
import os
import pathlib

import numpy as np

# float32 on both sides; summation order differs, so errors of 1e-6 to 1e-5 are normal.
RTOL = 1e-4


def relative_error(ours, twin) -> float:
  """max |ours - twin| / max |twin|, in float64."""
  ours, twin = np.asarray(ours, np.float64), np.asarray(twin, np.float64)
  assert ours.shape == twin.shape, f"shapes differ: ours {ours.shape}, twin {twin.shape}"
  assert np.isfinite(ours).all(), "ours is not finite"
  return float(np.abs(ours - twin).max() / max(np.abs(twin).max(), 1e-30))


def assert_parity(module: str, twin_name: str, ours, twin, rtol: float = RTOL) -> None:
  """Asserts agreement within `rtol` and records the error under (module, twin_name).

  Args:
    module: row of the README's parity table, e.g. "InternViT".
    twin_name: what it is compared with, e.g. "golden tokenizer_56" or "transformers InternVL".
    ours: array.
    twin: array of the same shape and layout.
    rtol: bound on `relative_error`.
  """
  error = relative_error(ours, twin)
  record = os.environ.get("UNILIP_PARITY_RECORD")  # JSON lines, read by benchmarks/parity_table.py
  if record:
    with pathlib.Path(record).open("a") as f:
      f.write(json.dumps({"module": module, "twin": twin_name, "error": error}) + "\n")
  assert error <= rtol, f"{module} against {twin_name}: relative error {error:.2e} > {rtol:.0e}"


def assert_gradients(module: str, twin_name: str, ours, twin) -> None:
  """Asserts agreement of every gradient.

  A gradient that is 0 but for rounding (a bias of keys under softmax) has no relative error: below
  1e-6 of the largest one, both must be as small.

  Args:
    module: row of the parity table.
    twin_name: what it is compared with.
    ours: {name: array}.
    twin: {name: array}, the same names.
  """
  largest = max(np.abs(np.asarray(value)).max() for value in twin.values())
  for name, value in twin.items():
    if np.abs(np.asarray(value)).max() < 1e-6 * largest:
      assert np.abs(np.asarray(ours[name])).max() < 1e-6 * largest, name
    else:
      assert_parity(module, twin_name, ours[name], value)
