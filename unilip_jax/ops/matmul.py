"""Multiplication of a batch of rows by a weight: the one place that picks a formulation per backend.

What is computed is the same everywhere: operands rounded to bfloat16 where that is asked for, float32 sums.
"""

import jax
import jax.numpy as jnp

from unilip_jax.ops import backend, cpu


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Computes x · weight with float32 sums.

  Where jax_default_matmul_precision is "bfloat16", float32 operands are rounded to it, in the backward pass
  too: on TPUs by XLA, on CPUs by ops/cpu.py.

  Args:
    x: float[M, K].
    weight: float[K, N], of x's dtype.

  Returns:
    float[M, N] in x's dtype.
  """
  rounds = jax.config.jax_default_matmul_precision == "bfloat16" or (
      x.dtype == jnp.bfloat16 and cpu.has_amx())
  if backend.name() == "cpu" and rounds:
    return cpu.matmul(x, weight)
  return jnp.dot(x, weight)
