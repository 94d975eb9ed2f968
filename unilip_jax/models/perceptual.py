"""The frozen networks of the perceptual loss and metrics: LPIPS, and ConvNeXt's logits.

References: LPIPS (arXiv 1801.03924) as in taming-transformers and, version 0.1, in the lpips package;
torchvision's convnext_small (arXiv 2201.03545).
"""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.models import layers, lpips_trunks, presets
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations

# LPIPS' own normalisation of images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_NORM_EPS = 1e-10
_CONVNEXT_SIZE = 224
_LAYER_SCALE = 1e-6


class Lpips(nn.Module):
  """Distance of two images in a trunk's features, weighted per channel.

  Attributes:
    trunk: dimensions of VGG16 (of the loss), AlexNet or SqueezeNet; their class chooses the network.
    dtype: of the trunk's computation.
  """

  trunk: presets.VggDims | presets.AlexNetDims | presets.SqueezeNetDims
  dtype: Any

  @nn.compact
  def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """Compares pairs.

    Args:
      a: float32[B, R, R, 3] in [0, 1].
      b: the same shape and range. Both are brought to [-1, 1], as the weights expect.

    Returns:
      float32[B].
    """
    chex.assert_equal_shape([a, b])
    name, network = lpips_trunks.TRUNKS[type(self.trunk)]
    trunk = network(self.trunk, self.dtype, name=name)
    total = jnp.zeros((a.shape[0],), jnp.float32)
    # Two passes, not one over both: where b is a constant, the second keeps nothing for the backward pass.
    for i, (fa, fb) in enumerate(zip(trunk(self._input(a)), trunk(self._input(b)))):
      weights = self.param(
          f"lin{i}", nn.initializers.constant(1.0 / fa.shape[-1]), (fa.shape[-1],))
      difference = jnp.square(_unit_length(fa) - _unit_length(fb)) * weights[None, None, None]
      total += difference.sum(-1).mean((1, 2))
    return total

  def _input(self, unit: jax.Array) -> jax.Array:
    x = (image_ops.signed_from_unit(unit) - _SHIFT[None, None, None]) / _SCALE[None, None, None]
    return x.astype(self.dtype)


def _unit_length(y: jax.Array) -> jax.Array:
  """float[B, H, W, C] -> float32, each position's channels divided by their length."""
  y = y.astype(jnp.float32)
  # The tiny number inside the root keeps its gradient finite where all features are 0.
  return y / (jnp.sqrt(jnp.square(y).sum(-1, keepdims=True) + 1e-30) + _NORM_EPS)


class ConvNext(nn.Module):
  """ConvNeXt classifier.

  Attributes:
    dims: depths, widths and classes.
    dtype: of the computation.
  """

  dims: presets.ConvNextDims
  dtype: Any

  @nn.compact
  def __call__(self, image_imagenet: jax.Array) -> jax.Array:
    """float32[B, R, R, 3], ImageNet-normalised -> float32[B, classes]."""
    d = self.dims
    x = Patchify(d.widths[0], 4, self.dtype, name="stem")(image_imagenet)
    x = layers.LayerNorm(1e-6, self.dtype, name="stem_norm")(x)
    for i, (depth, width) in enumerate(zip(d.depths, d.widths)):
      if i:
        x = layers.LayerNorm(1e-6, self.dtype, name=f"down{i}_norm")(x)
        x = Patchify(width, 2, self.dtype, name=f"down{i}")(x)
      x = ConvNextStage(depth, self.dtype, name=f"stage{i}")(x)
    x = layers.LayerNorm(1e-6, jnp.float32, name="head_norm")(
        x.astype(jnp.float32).mean((1, 2)))
    return activations.constrain(layers.Dense(d.classes, jnp.float32, name="head")(x), "batch")


class Patchify(nn.Module):
  """Convolution whose stride is its side; rows and columns that fill no patch are dropped."""

  width: int
  side: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = activations.constrain(x, "batch")
    s, c = self.side, x.shape[-1]
    init = layers.torch_uniform(s * s * c)
    kernel = self.param("kernel", init, (s, s, c, self.width)).astype(self.dtype)
    bias = self.param("bias", init, (self.width,)).astype(self.dtype)
    h, w = x.shape[1] // s, x.shape[2] // s
    x = x[:, :h * s, :w * s].reshape(-1, h, s, w, s, c).transpose(0, 1, 3, 2, 4, 5)
    y = x.reshape(-1, s * s * c).astype(self.dtype) @ kernel.reshape(s * s * c, -1) + bias[None]
    return activations.constrain(y.reshape(-1, h, w, self.width), "batch")


class ConvNextStage(nn.Module):
  """The equal blocks of one stage, scanned."""

  depth: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x, _ = layers.scan(ConvNextBlock, self.depth)(self.dtype, name="layers")(x)
    return x


class ConvNextBlock(nn.Module):
  """x + layer_scale · (depthwise 7×7 → LayerNorm → Dense → GELU → Dense)."""

  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    x = activations.constrain(x, "batch")
    width = x.shape[-1]
    y = layers.Depthwise(7, self.dtype, use_bias=True, name="depthwise")(x)
    y = layers.LayerNorm(1e-6, self.dtype, name="norm")(y)
    y = layers.Mlp(4 * width, width, self.dtype, name="mlp")(y)
    scale = self.param("layer_scale", nn.initializers.constant(_LAYER_SCALE), (width,))
    return x + scale.astype(self.dtype)[None, None, None] * y, None


def convnext_input(unit: jax.Array) -> jax.Array:
  """[0, 1] at any size -> 224 px (bilinear, antialias), ImageNet-normalised."""
  return image_ops.imagenet_from_unit(
      image_ops.resize_bilinear(unit, _CONVNEXT_SIZE, _CONVNEXT_SIZE, antialias=True))
