"""Products of a batch of rows with a weight: the one place that picks a formulation per backend.

XLA's CPU backend multiplies bfloat16 arrays as float32 where the result is bfloat16 too, and ignores
jax_default_matmul_precision. Only products of bfloat16 with a float32 result reach the matrix units (AMX)
of Intel's server CPUs, and of these not every layout: [4096, 128] · [128, 640] with its gradients takes
5.6 ms on one core in place of 18.0 (benchmarks/matmul.py). What is computed is the same everywhere:
operands rounded to bfloat16, float32 sums.
"""

import functools

import jax
from jax.experimental import layout
import jax.numpy as jnp

from unilip_jax.ops import backend


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
  """x · weight, with float32 sums.

  Where jax_default_matmul_precision is "bfloat16", float32 operands are rounded to it, in the backward pass
  too: on TPUs by XLA, on CPUs here.

  Args:
    x: float[M, K].
    weight: float[K, N], of x's dtype.

  Returns:
    float[M, N] in x's dtype.
  """
  if backend.name() != "cpu" or not (_asks_for_bfloat16() or _is_faster(x.dtype)):
    return jnp.dot(x, weight)
  return rounded(x, weight)


def _asks_for_bfloat16() -> bool:
  return jax.config.jax_default_matmul_precision == "bfloat16"


def _is_faster(dtype) -> bool:
  return dtype == jnp.bfloat16 and backend.cpu_has_amx()


@jax.custom_vjp
def rounded(x: jax.Array, weight: jax.Array) -> jax.Array:
  """`matmul` of operands rounded to bfloat16, forward and backward."""
  return _forward(x, weight)[0]


def _forward(x: jax.Array, weight: jax.Array):
  rounded_x, rounded_weight = x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
  y = _product(rounded_x, rounded_weight).astype(x.dtype)
  # The backward pass needs the dtypes of x and weight too, which empty arrays carry.
  return y, (rounded_x, rounded_weight, x[:0], weight[:0])


def _backward(saved, dy: jax.Array):
  x, weight, like_x, like_weight = saved
  dy = dy.astype(jnp.bfloat16)
  # The narrower is the one to transpose.
  dweight = _product(x.T, dy) if x.shape[1] <= dy.shape[1] else _product(dy.T, x).T
  return _product(dy, weight, over=1).astype(like_x.dtype), dweight.astype(like_weight.dtype)


rounded.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames="over", inline=True)  # layouts are for traced programs
def _product(a: jax.Array, b: jax.Array, over: int = 0) -> jax.Array:
  """float32 sums over the columns of a and over axis `over` of b."""
  sides = (((1,), (over,)), ((), ()))
  if not backend.cpu_has_amx():  # float32 holds products of bfloat16 exactly
    return jax.lax.dot_general(a.astype(jnp.float32), b.astype(jnp.float32), sides)
  # XLA has a kernel only for operands in this order in memory; else it fails at run time or falls back to
  # float32. The barrier keeps it from swapping operands where the result is transposed.
  rows_first = layout.Layout(major_to_minor=(0, 1))
  a, b = (layout.with_layout_constraint(side, rows_first) for side in (a, b))
  return jax.lax.optimization_barrier(
      jax.lax.dot_general(a, b, sides, preferred_element_type=jnp.float32))
