"""Convolutions: the one place that picks a formulation per backend.

XLA's CPU backend runs most dense convolutions well but depthwise ones badly: with gradients, 3×3 over
[32, 8, 8, 1024] takes 388 ms as a grouped convolution and 29 ms as nine shifted products on one
core (benchmarks/depthwise.py). TPUs and GPUs keep XLA's convolutions everywhere.
"""

import math

import jax
import jax.numpy as jnp

from unilip_jax.ops import backend

_DIMS = ("NHWC", "HWIO", "NHWC")
_WIDENING_IMAGES = 4  # whose patches are in the cache together
_SMALL_GRID = 16  # cells, up to which a depthwise convolution is written out cell by cell on a CPU


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, nested: bool = False) -> jax.Array:
  """Dense 2-D convolution with PyTorch's padding of k // 2 on every side.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, C, O], k odd.
    stride: of both axes.
    nested: the call stands inside a lax.cond or loop. XLA's CPU backend runs the gradients of
      convolutions badly there (the tiny discriminator: 7.8 s in place of 0.6 s), so a CPU then takes
      products of patches.

  Returns:
    float[B, ⌈H/stride⌉, ⌈W/stride⌉, O].
  """
  side, _, channels, features = kernel.shape
  if stride == 1 and backend.name() == "cpu":
    if nested:
      return conv_patches(x, kernel)
    if side > 1 and features > channels:
      return conv_widening(x, kernel)
  return _conv(x, kernel, stride)


def _conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=_DIMS)


def conv_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv` at stride 1 as one product over k×k patches."""
  b, h, w, _ = x.shape
  side, features = kernel.shape[0], kernel.shape[-1]
  y = _patches(_pad(x, side), side) @ kernel.reshape(-1, features)
  return y.reshape(b, h, w, features)


def _patches(padded: jax.Array, side: int) -> jax.Array:
  """[B, H + k - 1, W + k - 1, C] -> [B·H·W, k²·C]: what each cell of a convolution sees."""
  h, w = (n - side + 1 for n in padded.shape[1:3])
  seen = [padded[:, i:i + h, j:j + w] for i in range(side) for j in range(side)]
  return jnp.concatenate(seen, axis=-1).reshape(-1, side * side * padded.shape[-1])


@jax.custom_vjp
def conv_widening(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv` at stride 1 whose kernel's gradient is a sum of products over patches of a few images.

  XLA's own takes 377 ms for 32 -> 64 channels over [32, 32, 32] on two cores, this one 16 ms; with as
  many features as channels it is ahead (benchmarks/widening.py).
  """
  return _conv(x, kernel)


def _widening_forward(x: jax.Array, kernel: jax.Array):
  return conv_widening(x, kernel), (x, kernel)


def _widening_backward(saved, dy: jax.Array):
  x, kernel = saved
  side, features = kernel.shape[0], kernel.shape[-1]
  chunk = math.gcd(x.shape[0], _WIDENING_IMAGES)

  def add(total, images):
    part, d = images
    return total + jnp.dot(_patches(part, side).T, d.reshape(-1, features),
                           preferred_element_type=jnp.float32), None

  total, _ = jax.lax.scan(
      add, jnp.zeros((kernel.size // features, features), jnp.float32),
      (_split(_pad(x, side), chunk), _split(dy, chunk)))
  (dx,) = jax.linear_transpose(lambda x: _conv(x, kernel), x)(dy)
  return dx, total.reshape(kernel.shape).astype(kernel.dtype)


conv_widening.defvjp(_widening_forward, _widening_backward)


def _split(x: jax.Array, chunk: int) -> jax.Array:
  """[B, …] -> [B / chunk, chunk, …]."""
  return x.reshape(-1, chunk, *x.shape[1:])


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
      x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=_DIMS,
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
