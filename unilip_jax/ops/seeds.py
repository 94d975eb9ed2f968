"""Turns seeds of 64 bits into random keys; JAX alone would cut them to 32 bits.

A seed below 2³² gives `jax.random.key(seed)`. Further bits, and the sign, are folded into that key, so that
different seeds give different keys.
"""

import numbers
from typing import Any

import jax
import numpy as np

from unilip_jax.common import arguments


def words(value: Any, name: str = "seed") -> np.ndarray:
  """Divides a seed into words of 32 bits, the lowest first.

  Args:
    value: an integer from -2**63 to 2**64 - 1.
    name: of the argument, for the message.

  Returns:
    uint32[] for 0 … 2**32 - 1, uint32[2] for larger ones, uint32[3] for negative ones: the argument of
    `key` in a compiled program, and the entry `seed` of a training state.

  Raises:
    ValueError: for anything else.
  """
  value = arguments.seed(name, value)
  low, high = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
  if value < 0:
    return np.array([low, high, 1], np.uint32)
  return np.array([low, high], np.uint32) if high else np.array(low, np.uint32)


def key(seed: int | np.ndarray | jax.Array) -> jax.Array:
  """Makes the random key of a seed, or of its `words` in a compiled program."""
  if isinstance(seed, numbers.Integral):
    seed = words(seed)
  if not seed.ndim:
    return jax.random.key(seed)
  result = jax.random.key(seed[0])
  for i in range(1, seed.shape[0]):
    result = jax.random.fold_in(result, seed[i])
  return result
