"""Doubling and halving the sides of an image: the one place that picks a formulation per backend.

Compiled for a v5e chip, with gradients, at the four largest upsamplings of DC-AE's decoder at 448 px, a
convolution over the doubled image takes an estimated 102 ms for four images and its transposed form 34 ms;
the shortcut adds 29 ms to the one as a transposition in memory and 8 to the other as products with ones
(`python -m benchmarks.upsampling`). GPUs keep the plain forms: none has measured the others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.ops import backend, conv


def pixel_shuffle(x: jax.Array) -> jax.Array:
  """[B, H, W, 4C] -> [B, 2H, 2W, C]; a channel of x is (C, row, column), as in PyTorch."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, 2 * h, 2 * w, c // 4)


def pixel_unshuffle(x: jax.Array) -> jax.Array:
  """The inverse of `pixel_shuffle`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(b, h // 2, w // 2, 4 * c)


# ---- nearest-neighbour doubling, then a convolution


def conv_nearest(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv.conv` of the image whose every pixel is doubled along both axes.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, C, O], k odd; products are of x's dtype.

  Returns:
    float[B, 2H, 2W, O].
  """
  if backend.name() == "tpu":
    return conv_nearest_transposed(x, kernel)
  return conv_nearest_doubled(x, kernel)


def conv_nearest_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv_nearest` as it is defined."""
  return conv.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel.astype(x.dtype))


def conv_nearest_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv_nearest` as the transpose of a convolution of stride 2, which never makes the doubled image.

  To double is to set zeros between pixels and to add up 2×2 of them; the kernel takes that sum in. Of the
  (k + 1)² taps a pixel meets a quarter: 4 multiplications in place of 9 at k = 3.
  """
  padded = jnp.pad(kernel.astype(jnp.float32), ((1, 1), (1, 1), (0, 0), (0, 0)))
  rows = padded[1:] + padded[:-1]
  return _transposed(x, (rows[:, 1:] + rows[:, :-1]).astype(x.dtype))


def _dilated(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B, H, W, C], [2n, 2n, C, O] -> [B, 2H, 2W, O]: the transpose of `_strided`."""
  reach = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), [(reach, reach)] * 2, lhs_dilation=(2, 2), dimension_numbers=conv.DIMS)


@jax.custom_vjp
def _transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`_dilated`, with the gradients of `_strided`.

  What JAX derives for the kernel is a convolution that dilates the wrong side, for which cuDNN has no
  algorithm.
  """
  return _dilated(x, kernel)


def _strided(y: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B, 2H, 2W, O], [2n, 2n, O, C] -> [B, H, W, C]."""
  pad = kernel.shape[0] // 2 - 1
  return jax.lax.conv_general_dilated(y, kernel, (2, 2), [(pad, pad)] * 2, dimension_numbers=conv.DIMS)


def _flipped(kernel: jax.Array) -> jax.Array:
  return kernel[::-1, ::-1].swapaxes(2, 3)


def _transposed_backward(saved, dy: jax.Array):
  x, kernel = saved
  dx, gradient = jax.vjp(functools.partial(_strided, dy), _flipped(kernel))
  return dx, _flipped(gradient(x)[0])


_transposed.defvjp(lambda x, kernel: (_transposed(x, kernel), (x, kernel)), _transposed_backward)


# ---- the shortcut around it


def shuffle_repeated(x: jax.Array, features: int) -> jax.Array:
  """`pixel_shuffle` of x with its channels repeated in place: float[B, H, W, C] -> [B, 2H, 2W, features].

  4 · features is a multiple of C.
  """
  if backend.name() == "tpu":
    return moved_by_products(x, features)
  return shuffle_repeated_moves(x, features)


def shuffle_repeated_moves(x: jax.Array, features: int) -> jax.Array:
  """`shuffle_repeated` as it is defined."""
  return pixel_shuffle(jnp.repeat(x, 4 * features // x.shape[-1], axis=-1))


@functools.partial(jax.jit, static_argnums=1)
def moved_by_products(x: jax.Array, features: int) -> jax.Array:
  """`shuffle_repeated` as a transposed convolution with one 1 per output; exact where products are.

  A TPU keeps channels in its lanes and is slow to move them into rows and columns; products are cheap.
  flops.py knows this function by its name: that values move is no work of a model's.
  """
  channels = x.shape[-1]
  row, column, feature = np.meshgrid(range(2), range(2), range(features), indexing="ij")
  ones = np.zeros((2, 2, channels, features), np.float32)
  ones[row, column, (4 * feature + 2 * row + column) * channels // (4 * features), feature] = 1
  return _dilated(x, jnp.asarray(ones[::-1, ::-1], x.dtype))
