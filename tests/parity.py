"""Defines agreement with a PyTorch reference, and records the worst error of each module."""

import json
import os
import pathlib

import chex
import numpy as np

# float32 on both sides; summation order differs, so errors of 1e-6 to 1e-5 are normal.
RTOL = 1e-4


def relative_error(value, reference) -> float:
  """Returns max |value - reference| / max |reference|, computed in float64.

  Args:
    value: the JAX array.
    reference: array of the same shape and layout.

  Raises:
    AssertionError: the shapes differ, or the value is not finite.
  """
  value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
  chex.assert_equal_shape([value, reference])
  chex.assert_tree_all_finite(value)
  return float(np.abs(value - reference).max() / max(np.abs(reference).max(), 1e-30))


def assert_parity(module: str, reference_name: str, value, reference, rtol: float = RTOL) -> None:
  """Asserts agreement within `rtol` and records the error under (module, reference_name).

  Args:
    module: row of docs/parity.md, e.g. "InternViT".
    reference_name: what the value is compared with, e.g. "golden tokenizer_56".
    value: the JAX array.
    reference: array of the same shape and layout.
    rtol: bound on `relative_error`.
  """
  error = relative_error(value, reference)
  record(module=module, reference=reference_name, error=error)
  assert error <= rtol, f"{module} against {reference_name}: relative error {error:.2e} > {rtol:.0e}"


def record(**row) -> None:
  """Appends a row to the file that $UNILIP_PARITY_RECORD names; benchmarks/parity_table.py reads it."""
  if path := os.environ.get("UNILIP_PARITY_RECORD"):
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
    with pathlib.Path(path).open("a") as f:
      f.write(json.dumps({"test": test} | row) + "\n")


def assert_recorded(
    module: str, reference_name: str, value, recorded: np.ndarray, rtol: float = RTOL) -> None:
  """Asserts agreement at the recorded positions (`like`); arguments as of `assert_parity`."""
  assert_parity(module, reference_name, like(value, recorded), recorded, rtol)


def assert_gradients(module: str, reference_name: str, values, references) -> None:
  """Asserts agreement of every gradient.

  A gradient that is 0 but for rounding (a bias of keys under softmax) has no relative error: below
  1e-6 of the largest one, both must be as small.

  Args:
    module: row of the parity table.
    reference_name: what the gradients are compared with.
    values: {name: array} in JAX.
    references: {name: array}, the same names.
  """
  sizes = {name: float(np.abs(np.asarray(value)).max()) for name, value in references.items()}
  largest, wrong = max(sizes.values()), []
  for name, reference in references.items():
    if sizes[name] < 1e-6 * largest:
      assert np.abs(np.asarray(values[name])).max() < 1e-6 * largest, name
      continue
    error = relative_error(values[name], reference)
    record(module=module, reference=reference_name, error=error)
    if error > RTOL:
      wrong.append(f"{name}: {error:.1e}, its size {sizes[name] / largest:.1e} of the largest gradient")
  assert not wrong, f"{module} against {reference_name}:\n" + "\n".join(wrong)


def like(value, recorded: np.ndarray) -> np.ndarray:
  """Selects the positions of an array that were recorded: every n-th one of each axis.

  The recordings in tests/golden keep a part of large outputs; n follows from both shapes.

  Args:
    value: array of the complete shape.
    recorded: array whose axis i has ceil(value.shape[i] / n_i) entries.

  Returns:
    Array of the recorded shape.
  """
  value = np.asarray(value)
  assert value.ndim == recorded.ndim, f"{value.shape} against {recorded.shape}"
  steps = tuple(slice(None, None, -(-n // m)) for n, m in zip(value.shape, recorded.shape))
  chex.assert_shape(value[steps], recorded.shape)
  return value[steps]
