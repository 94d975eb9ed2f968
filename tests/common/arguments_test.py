"""Arguments are checked in one sentence that names the value and the choices."""

import numpy as np
import pytest

from unilip_jax.common import arguments


def test_numbers_of_python_and_numpy_are_accepted():
  assert arguments.integer("steps", np.int64(3), 1) == 3
  assert arguments.number("guidance", np.float32(0.5), 0) == 0.5
  assert arguments.number("temperature", 0, 0) == 0
  assert arguments.choice("dtype", "a", ("a", "b")) == "a"
  assert arguments.flag("int8", True) is True


@pytest.mark.parametrize(("check", "message"), [
    (lambda: arguments.integer("batch_size", 0, 1), "batch_size=0: choose an integer of at least 1$"),
    (lambda: arguments.integer("steps", 2000, 1, 1000), "steps=2000: .* at least 1 and at most 1000$"),
    (lambda: arguments.integer("batch_size", 2.0, 1), "batch_size=2.0"),
    (lambda: arguments.integer("batch_size", True, 1), "batch_size=True"),
    (lambda: arguments.integer("batch_size", "8", 1), "batch_size='8'"),
    (lambda: arguments.number("guidance", float("nan"), 0), "guidance=nan: choose a finite number"),
    (lambda: arguments.number("guidance", float("inf"), 0), "guidance=inf"),
    (lambda: arguments.number("guidance", 10**400, 0), "choose a finite number"),
    (lambda: arguments.number("guidance", -1, 0), "guidance=-1: .* of at least 0$"),
    (lambda: arguments.number("guidance", "4", 0), "guidance='4'"),
    (lambda: arguments.number("guidance", None, 0), "guidance=None"),
    (lambda: arguments.number("top_p", 0.0, 0, 1, open_below=True), "top_p=0.0: .* above 0 and at most 1$"),
    (lambda: arguments.number("top_p", 1.1, 0, 1, open_below=True), "top_p=1.1"),
    (lambda: arguments.choice("dtype", "fp16", ("a", "b"), "; see c"), "'fp16': choose 'a' or 'b'; see"),
    (lambda: arguments.choice("dtype", None, ("a", "b")), "dtype=None"),
    (lambda: arguments.flag("int8", 1), "int8=1: choose True or False"),
])
def test_other_values_are_refused(check, message):
  with pytest.raises(ValueError, match=message):
    check()
