"""Patch discriminator of the GAN loss (UniLIP's reconstruction training; the design is MaskBit's).

5×5 convolution, three stages [3×3 convolution → blur, stride 2 → GroupNorm → LeakyReLU], adaptive
max-pool to 16×16, two convolutions to one logit per cell. TensorFlow-style "same" padding. Images are
in [0, 1].
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.models import layers, presets

_SLOPE = 0.1
_GROUP_EPS = 1e-5
_BLUR = np.array([1.0, 3.0, 3.0, 1.0], np.float32)


class Discriminator(nn.Module):
  """Attributes: dims (channels), dtype (of the computation)."""

  dims: presets.DiscriminatorDims
  dtype: Any

  @nn.compact
  def __call__(self, unit: jax.Array) -> jax.Array:
    """float[B, R, R, 3] in [0, 1] -> float32[B, pool, pool, 1] logits."""
    d = self.dims
    conv = functools.partial(layers.Conv, dtype=self.dtype)
    x = _leaky(conv(d.stem, 5, name="conv_in")(unit))
    for i, channels in enumerate(d.channels):
      x = blur(conv(channels, 3, name=f"conv_{i}")(x))
      x = _leaky(GroupNorm(d.groups, self.dtype, name=f"norm_{i}")(x))
    x = adaptive_max_pool(x, d.pool)
    x = _leaky(conv(d.channels[-1], 1, name="logits_in")(x))
    return conv(1, 5, name="logits_out")(x).astype(jnp.float32)


def _leaky(x: jax.Array) -> jax.Array:
  return jax.nn.leaky_relu(x, _SLOPE)


class GroupNorm(nn.Module):
  """GroupNorm with float32 statistics."""

  groups: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    scale = self.param("scale", nn.initializers.ones, (c,))
    bias = self.param("bias", nn.initializers.zeros, (c,))
    y = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
    y = y - y.mean((1, 3), keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + _GROUP_EPS)
    y = y.reshape(b, h, w, c) * scale[None, None, None] + bias[None, None, None]
    return y.astype(self.dtype)


def blur(x: jax.Array) -> jax.Array:
  """Applies the blur (1, 3, 3, 1)² / 64, stride 2, "same" padding: [B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, C]."""
  weights = _BLUR / _BLUR.sum()
  for axis in (1, 2):
    x = _blur_axis(x, weights, axis)
  return x


def _blur_axis(x: jax.Array, weights: np.ndarray, axis: int) -> jax.Array:
  size = x.shape[axis]
  out = -(-size // 2)
  total = max((out - 1) * 2 + len(weights) - size, 0)
  pads = [(0, 0)] * x.ndim
  pads[axis] = (total // 2, total - total // 2)
  padded = jnp.pad(x, pads)
  return sum(
      float(w) * jax.lax.slice_in_dim(padded, i, i + 2 * out - 1, 2, axis)
      for i, w in enumerate(weights))


def adaptive_max_pool(x: jax.Array, side: int) -> jax.Array:
  """Computes torch.nn.AdaptiveMaxPool2d: bin i covers [⌊i·H/side⌋, ⌈(i+1)·H/side⌉).

  Args:
    x: float[B, H, W, C], of any size, smaller than `side` included.
    side: of the result.

  Returns:
    float[B, side, side, C].
  """
  for axis in (1, 2):
    x = _adaptive_max_axis(x, side, axis)
  return x


def _adaptive_max_axis(x: jax.Array, side: int, axis: int) -> jax.Array:
  size = x.shape[axis]
  if size == side:
    return x
  starts = [i * size // side for i in range(side)]
  ends = [-(-(i + 1) * size // side) for i in range(side)]
  width = max(e - s for s, e in zip(starts, ends))
  # A narrower bin repeats its last element, which changes no maximum.
  return jnp.stack([
      jnp.take(x, np.minimum(np.array(starts) + k, np.array(ends) - 1), axis=axis)
      for k in range(width)]).max(0)
