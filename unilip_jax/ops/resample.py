"""Doubling and halving the sides of an image: the one place that picks a formulation per backend.

Compiled for a v5e chip, with gradients, at the four largest upsamplings of DC-AE's decoder at 448 px, a
convolution over the doubled image takes an estimated 102 ms for four images and its transposed form 34 ms.
The shortcut adds 29 ms to the first as a transposition in memory, and 8 ms to the second as a convolution
with ones (`python -m benchmarks.upsampling`). GPUs use the plain forms: the others are not measured there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.ops import backend, conv


def pixel_shuffle(x: jax.Array) -> jax.Array:
  """Moves channels to rows and columns as PyTorch does: [B, H, W, 4C] -> [B, 2H, 2W, C].

  A channel of x is (C, row, column).
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, 2 * h, 2 * w, c // 4)


def pixel_unshuffle(x: jax.Array) -> jax.Array:
  """Inverts `pixel_shuffle`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(b, h // 2, w // 2, 4 * c)


# ---- nearest-neighbour doubling, then a convolution


def conv_nearest(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes `conv.conv` of the image whose every pixel is doubled along both axes.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, C, O], k odd; it is cast to x's dtype.

  Returns:
    float[B, 2H, 2W, O].
  """
  if backend.name() == "tpu":
    return conv_nearest_transposed(x, kernel)
  return conv_nearest_doubled(x, kernel)


def conv_nearest_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes `conv_nearest` as it is defined."""
  return conv.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel.astype(x.dtype))


def conv_nearest_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes `conv_nearest` as the transpose of a convolution of stride 2, without the doubled image.

  Doubling equals setting zeros between pixels and adding up 2×2 of them; the kernel absorbs that sum. A
  pixel meets a quarter of the (k + 1)² taps: 4 multiplications instead of 9 at k = 3.
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
  """Computes `_dilated` with the gradients of `_strided`.

  JAX would derive a convolution for the kernel that dilates the other operand, for which cuDNN has no
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
  """Computes `pixel_shuffle` of x with each channel repeated: float[B, H, W, C] -> [B, 2H, 2W, features].

  4 · features is a multiple of C.
  """
  if backend.name() == "tpu":
    return shuffle_by_convolution(x, features)
  return shuffle_by_transpose(x, features)


def shuffle_by_transpose(x: jax.Array, features: int) -> jax.Array:
  """Computes `shuffle_repeated` as it is defined."""
  return pixel_shuffle(jnp.repeat(x, 4 * features // x.shape[-1], axis=-1))


@functools.partial(jax.jit, static_argnums=1)
def shuffle_by_convolution(x: jax.Array, features: int) -> jax.Array:
  """Computes `shuffle_repeated` as a transposed convolution with one 1 per output; exact in every dtype.

  A TPU keeps channels in its lanes and is slow to move them into rows and columns; convolutions are cheap.
  training/flops.py finds this function by its name and does not count it as work of a network.
  """
  channels = x.shape[-1]
  row, column, feature = np.meshgrid(range(2), range(2), range(features), indexing="ij")
  ones = np.zeros((2, 2, channels, features), np.float32)
  ones[row, column, (4 * feature + 2 * row + column) * channels // (4 * features), feature] = 1
  return _dilated(x, jnp.asarray(ones[::-1, ::-1], x.dtype))
