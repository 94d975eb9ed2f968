"""Formulations for XLA's CPU backend, which is slow at what TPUs and GPUs do well.

`ops/conv.py`, `ops/matmul.py` and `models/layers.py` choose them where a program is traced for a CPU.
Values and gradients are those of the plain forms, up to the order of sums. Measured by
`benchmarks/convolutions.py` and `benchmarks/matmul.py` on one core:

- Dense convolution: the gradients of 16 channels over [32, 112, 112] take 6.1 s as XLA's convolution inside
  a lax.cond or a loop, 122 ms outside, and 104 ms in both places as matrix multiplications.
- Depthwise convolution: 3×3 over [32, 8, 8, 1024] with gradients takes 388 ms as a grouped convolution and
  29 ms as nine shifted multiplications.
- Matrix multiplication: XLA multiplies bfloat16 arrays as float32 where the result is bfloat16 too, and
  ignores jax_default_matmul_precision. Only multiplications of bfloat16 with a float32 result use the
  matrix units (AMX) of Intel's server CPUs, and only in some layouts: [4096, 128] · [128, 640] with its
  gradients then takes 5.6 ms instead of 18.0.
"""

import functools
import math

import jax
from jax.experimental import layout
import jax.numpy as jnp

from unilip_jax.ops import bilinear

_CACHE_BYTES = 3 * 2**20  # of what a kernel's gradient works on at a time
_SMALL_GRID = 16  # cells, up to which a depthwise convolution is written out cell by cell
_UNROLLED = 8  # layers, up to which a stack is no loop


def unroll(layers: int) -> int:
  """Returns how many layers of a scanned stack one iteration of its loop holds: all of a short stack.

  XLA runs what is inside a loop slower: the tiny DiT with gradients takes 716 ms in a loop and 593 ms
  without (medians of alternating runs).
  """
  return layers if layers <= _UNROLLED else 1


# ---- dense convolution


@jax.custom_vjp
def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves at stride 1; sums the kernel's gradient as matrix multiplications, a few images at a time.

  With k horizontal shifts of x side by side and k vertical shifts of dy, X' D holds the gradient of all
  k² taps: k copies of each are made, not the k² of patches. The gradient of x is written as the
  convolution that it is, because XLA is as slow as above where it has to find that out inside a lax.cond.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, C, O], k odd.

  Returns:
    float[B, H, W, O].
  """
  return _xla_conv(x, kernel)


def _xla_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv_forward(x: jax.Array, kernel: jax.Array):
  return conv(x, kernel), (x, kernel)


def _conv_backward(saved, dy: jax.Array):
  x, kernel = saved
  side, _, c, o = kernel.shape
  b, h, w, _ = x.shape
  pad = (side // 2, side // 2)
  each = h * w * side * (c + o) * x.dtype.itemsize
  images = max(n for n in range(1, b + 1) if b % n == 0 and n <= max(1, _CACHE_BYTES // each))

  def add(total, parts):
    px, pd = parts
    across = jnp.concatenate([px[:, :, j:j + w] for j in range(side)], -1).reshape(-1, side * c)
    down = jnp.concatenate(
        [pd[:, side - 1 - i:side - 1 - i + h] for i in range(side)], -1).reshape(-1, side * o)
    return total + jnp.dot(across.T, down, preferred_element_type=jnp.float32), None

  total, _ = jax.lax.scan(
      add, jnp.zeros((side * c, side * o), jnp.float32),
      (_split(jnp.pad(x, ((0, 0), (0, 0), pad, (0, 0))), images),
       _split(jnp.pad(dy, ((0, 0), pad, (0, 0), (0, 0))), images)))
  dkernel = total.reshape(side, c, side, o).transpose(2, 0, 1, 3)
  dx = _xla_conv(dy, kernel[::-1, ::-1].swapaxes(2, 3))
  return dx, dkernel.astype(kernel.dtype)


conv.defvjp(_conv_forward, _conv_backward)


def _split(x: jax.Array, images: int) -> jax.Array:
  """[B, …] -> [B / images, images, …]."""
  return x.reshape(-1, images, *x.shape[1:])


# ---- depthwise convolution


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves each channel by itself, as a sum of k² shifted multiplications.

  Small grids are written out cell by cell, without padding: [192, 4, 4, 640] takes 2.6 ms so and 4.6 ms
  shifted as a block on two cores, its backward pass 8.4 and 33 ms (medians of alternating runs).

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, 1, C], k odd.

  Returns:
    float[B, H, W, C].
  """
  return _convolve(x, kernel, side=kernel.shape[0])


def _shifted_sum(x: jax.Array, kernel: jax.Array, *, side: int) -> jax.Array:
  _, h, w, _ = x.shape
  if h * w <= _SMALL_GRID:
    cells = [sum(x[:, r + i, q + j] * kernel[i + side // 2, j + side // 2]
                 for i, j in _offsets(side) if 0 <= r + i < h and 0 <= q + j < w)
             for r in range(h) for q in range(w)]
    return jnp.stack(cells, axis=1).reshape(x.shape)
  padded = _pad(x, side)
  return sum(
      padded[:, i:i + h, j:j + w] * kernel[i, j][None, None]
      for i in range(side) for j in range(side))


def _offsets(side: int) -> list[tuple[int, int]]:
  """(row, column) of every element of a kernel, from its centre."""
  reach = range(-(side // 2), side // 2 + 1)
  return [(i, j) for i in reach for j in reach]


def _pad(x: jax.Array, side: int) -> jax.Array:
  pad = side // 2
  return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _correlations(x: jax.Array, dy: jax.Array, *, side: int) -> jax.Array:
  """Sums the kernel's gradient a few images at a time, for the cache.

  At once, k² arrays of the size of the batch are written out and read again, which takes 2 to 6 times as
  long.
  """
  b, h, w, c = x.shape
  small = h * w <= _SMALL_GRID
  chunk = math.gcd(b, 16 if small else 4)

  def add(total, images):
    part, d = images
    if small:
      nothing = jnp.zeros((chunk, c), x.dtype)  # of a tap that never meets the grid
      terms = [sum((part[:, r + i, q + j] * d[:, r, q] for r in range(h) for q in range(w)
                    if 0 <= r + i < h and 0 <= q + j < w), nothing).astype(jnp.float32).sum(0)
               for i, j in _offsets(side)]
    else:
      terms = [(part[:, i:i + h, j:j + w] * d).astype(jnp.float32).sum((0, 1, 2))
               for i in range(side) for j in range(side)]
    return total + jnp.stack(terms), None

  total, _ = jax.lax.scan(
      add, jnp.zeros((side**2, c), jnp.float32),
      (_split(x if small else _pad(x, side), chunk), _split(dy, chunk)))
  return total.reshape(side, side, 1, c).astype(dy.dtype)


_flipped = lambda kernel: kernel[::-1, ::-1]
_convolve = bilinear.define(
    "depthwise_convolution", _shifted_sum,
    left=lambda dy, kernel, side: _convolve(dy, _flipped(kernel), side=side),
    right=lambda x, dy, side: _correlate(x, dy, side=side))
_correlate = bilinear.define(
    "depthwise_correlation", _correlations,
    left=lambda kernel, dy, side: _convolve(dy, _flipped(kernel), side=side),
    right=lambda x, kernel, side: _convolve(x, kernel, side=side))


# ---- matrix multiplication


@functools.cache
def has_amx() -> bool:
  """Returns whether this CPU has matrix units for bfloat16: Intel's servers since 2023, on Linux."""
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as f:
      return any("amx_bf16" in line for line in f if line.startswith("flags"))
  except FileNotFoundError:  # not Linux
    return False


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Multiplies operands rounded to bfloat16, in all derivatives too, with float32 sums.

  Args:
    x: float[M, K].
    weight: float[K, N].

  Returns:
    float[M, N] in x's dtype.
  """
  return _product(x, weight)


_rounded = lambda x: x.astype(jnp.bfloat16)


def _transposed_product(x: jax.Array, dy: jax.Array) -> jax.Array:
  """xᵀ · dy."""
  out, x, dy = dy.dtype, _rounded(x), _rounded(dy)
  # The narrower is the one to transpose.
  product = _dot(x.T, dy) if x.shape[1] <= dy.shape[1] else _dot(dy.T, x).T
  return product.astype(out)


_product = bilinear.define(  # x · w
    "rounded_product", lambda x, w: _dot(_rounded(x), _rounded(w)).astype(x.dtype),
    left=lambda dy, w: _with_transposed(dy, w), right=lambda x, dy: _of_transposed(x, dy))
_with_transposed = bilinear.define(  # dy · wᵀ
    "rounded_product_with_transposed",
    lambda dy, w: _dot(_rounded(dy), _rounded(w), over=1).astype(dy.dtype),
    left=lambda x, w: _product(x, w), right=lambda dy, x: _of_transposed(x, dy))
_of_transposed = bilinear.define(  # xᵀ · dy
    "rounded_product_of_transposed", _transposed_product,
    left=lambda w, dy: _with_transposed(dy, w), right=lambda x, w: _product(x, w))


@functools.partial(jax.jit, static_argnames="over", inline=True)  # layouts are for traced programs
def _dot(a: jax.Array, b: jax.Array, over: int = 0) -> jax.Array:
  """Sums over the columns of a and over axis `over` of b, in float32."""
  sides = (((1,), (over,)), ((), ()))
  if not has_amx():  # float32 represents the product of two bfloat16 numbers exactly
    return jax.lax.dot_general(a.astype(jnp.float32), b.astype(jnp.float32), sides)
  # XLA has a kernel only for operands in this order in memory; else it fails at run time or falls back to
  # float32. The barrier keeps it from swapping operands where the result is transposed.
  rows_first = layout.Layout(major_to_minor=(0, 1))
  a, b = (layout.with_layout_constraint(side, rows_first) for side in (a, b))
  return jax.lax.optimization_barrier(
      jax.lax.dot_general(a, b, sides, preferred_element_type=jnp.float32))
