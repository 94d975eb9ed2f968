"""Convolutions: the one place that picks a formulation per backend.

XLA's CPU backend is slow at two kinds. Depthwise: with gradients, 3×3 over [32, 8, 8, 1024] takes 388 ms
as a grouped convolution and 29 ms as nine shifted products on one core. Dense, inside a lax.cond or loop:
the gradients of 16 channels over [32, 112, 112] take 6.1 s there, 122 ms outside, and 104 ms in both places
as products (benchmarks/convolutions.py). TPUs and GPUs keep XLA's convolutions everywhere.
"""

import math

import jax
import jax.numpy as jnp

from unilip_jax.ops import backend

DIMS = ("NHWC", "HWIO", "NHWC")
_CACHE_BYTES = 3 * 2**20  # of what a kernel's gradient works on at a time on a CPU
_SMALL_GRID = 16  # cells, up to which a depthwise convolution is written out cell by cell on a CPU


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """Dense 2-D convolution with PyTorch's padding of k // 2 on every side.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, C, O], k odd.
    stride: of both axes.

  Returns:
    float[B, ⌈H/stride⌉, ⌈W/stride⌉, O].
  """
  if stride == 1 and backend.name() == "cpu":
    return conv_products(x, kernel)
  return conv_xla(x, kernel, stride)


def conv_xla(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """`conv` as XLA's convolution."""
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=DIMS)


@jax.custom_vjp
def conv_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv` at stride 1 whose kernel's gradient is a sum of products, a few images at a time.

  With k horizontal shifts of x side by side and k vertical shifts of dy, X' D holds the gradient of all
  k² taps: k copies of each are made, not the k² of patches. The gradient of x is written as the
  convolution that it is, for XLA is as slow as above where it has to find that out inside a lax.cond.
  """
  return conv_xla(x, kernel)


def _products_forward(x: jax.Array, kernel: jax.Array):
  return conv_products(x, kernel), (x, kernel)


def _products_backward(saved, dy: jax.Array):
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
  dx = conv_xla(dy, kernel[::-1, ::-1].swapaxes(2, 3))
  return dx, dkernel.astype(kernel.dtype)


conv_products.defvjp(_products_forward, _products_backward)


def _split(x: jax.Array, images: int) -> jax.Array:
  """[B, …] -> [B / images, images, …]."""
  return x.reshape(-1, images, *x.shape[1:])


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Each channel with its own kernel, stride 1, padding k // 2.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, 1, C], k odd.

  Returns:
    float[B, H, W, C].
  """
  if backend.name() == "cpu":
    return depthwise_shifts(x, kernel)
  return depthwise_grouped(x, kernel)


def depthwise_grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`depthwise` as a grouped convolution."""
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=DIMS,
      feature_group_count=x.shape[-1])


@jax.custom_vjp
def depthwise_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`depthwise` as a sum of k² shifted products; small grids cell by cell, without padding.

  [192, 4, 4, 640] takes 2.6 ms cell by cell and 4.6 ms shifted whole on two cores, its backward pass 8.4
  and 33 ms (medians of alternating runs).
  """
  side = kernel.shape[0]
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


def _shifts_forward(x: jax.Array, kernel: jax.Array):
  return depthwise_shifts(x, kernel), (x, kernel)


def _shifts_backward(saved, dy: jax.Array):
  """The kernel's gradient goes a few images at a time, for the cache: at once, k² products of the
  whole batch are written out and read again, which takes 2 to 6 times as long."""
  x, kernel = saved
  side = kernel.shape[0]
  b, h, w, c = x.shape
  small = h * w <= _SMALL_GRID
  chunk = math.gcd(b, 16 if small else 4)

  def add(total, images):
    part, d = images
    if small:
      nothing = jnp.zeros((chunk, c), x.dtype)  # what a tap sees that never meets the grid
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
  dkernel = total.reshape(side, side, 1, c).astype(kernel.dtype)
  return depthwise_shifts(dy, kernel[::-1, ::-1]), dkernel


depthwise_shifts.defvjp(_shifts_forward, _shifts_backward)
