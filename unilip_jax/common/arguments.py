"""Checks arguments of commands, configs and the Python API before anything is read or computed.

Each check returns the value in its plain type, or raises ValueError: one sentence with the name, the value
and the choices.
"""

from collections.abc import Sequence
import math
import numbers
from typing import Any

_SEEDS = (-2**63, 2**64 - 1)


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
  """Returns an integer of Python or NumPy within [least, most]; refuses booleans, fractions and text."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < least or (most is not None and value > most):
    upper = "" if most is None else f" and at most {most}"
    raise ValueError(f"{name}={value!r}: choose an integer of at least {least}{upper}")
  return int(value)


def number(
    name: str, value: Any, least: float, most: float = math.inf, *, open_below: bool = False) -> float:
  """Returns a finite number within [least, most], or (least, most]; refuses booleans and text."""
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not real or not _is_finite(value) or not least <= value <= most or (open_below and value == least):
    lower = f"above {least:g}" if open_below else f"of at least {least:g}"
    upper = "" if most == math.inf else f" and at most {most:g}"
    raise ValueError(f"{name}={value!r}: choose a finite number {lower}{upper}")
  return float(value)


def _is_finite(value: numbers.Real) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer that no float holds
    return False


def interval(name: str, value: Any, least: float, most: float) -> tuple[float, float]:
  """Returns (low, high) with least ≤ low ≤ high ≤ most."""
  if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
    raise ValueError(f"{name}={value!r}: give two numbers, low and high")
  low, high = number(name, value[0], least, most), number(name, value[1], least, most)
  if low > high:
    raise ValueError(f"{name}={value!r}: the first number is above the second")
  return low, high


def choice(name: str, value: Any, choices: Sequence[str], hint: str = "") -> str:
  """Returns one of `choices`; `hint` is added to the message."""
  if not isinstance(value, str) or value not in choices:
    raise ValueError(f"{name}={value!r}: choose {' or '.join(repr(c) for c in choices)}{hint}")
  return value


def flag(name: str, value: Any) -> bool:
  """Returns True or False; refuses numbers and text."""
  if not isinstance(value, bool):
    raise ValueError(f"{name}={value!r}: choose True or False")
  return value


def exclusive(**given: bool) -> None:
  """Refuses several options of which only one may be given: {name: whether it is}."""
  names = [name for name, is_given in given.items() if is_given]
  if len(names) > 1:
    raise ValueError(f"{' and '.join(names)} exclude each other; give one")


def seed(name: str, value: Any) -> int:
  """Returns a seed: any integer of 64 bits, signed or unsigned."""
  if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not (
      _SEEDS[0] <= value <= _SEEDS[1]):
    raise ValueError(f"{name}={value!r}: a seed is an integer from -2**63 to 2**64 - 1")
  return int(value)
