"""The networks whose activations LPIPS compares: VGG16, AlexNet, SqueezeNet 1.1 (arXiv 1801.03924).

They are torchvision's, without classifiers, cut after the activations that the lpips package 0.1 takes.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from unilip_jax.models import layers, presets

_POOLED_FIRES = (0, 2, 4)  # of SqueezeNet 1.1: a pooling precedes these
_COMPARED_FIRES = (1, 3, 4, 5, 6, 7)  # whose outputs are compared


class Vgg16(nn.Module):
  """The five slices of VGG16, each up to its last activation."""

  dims: presets.VggDims
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    outputs = []
    for i, (channels, convs) in enumerate(zip(self.dims.channels, self.dims.convs)):
      if i:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for j in range(convs):
        x = jax.nn.relu(layers.Conv(channels, 3, self.dtype, name=f"slice{i}_conv{j}")(x))
      outputs.append(x)
    return outputs


class AlexNet(nn.Module):
  """The five convolutions of AlexNet."""

  dims: presets.AlexNetDims
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    outputs = []
    for i, channels in enumerate(self.dims.channels):
      if i in (1, 2):
        x = nn.max_pool(x, (3, 3), (2, 2))
      convolution = (layers.Conv(channels, 11, self.dtype, stride=4, padding=2, name="conv0") if i == 0 else
                     layers.Conv(channels, 5 if i == 1 else 3, self.dtype, name=f"conv{i}"))
      x = jax.nn.relu(convolution(x))
      outputs.append(x)
    return outputs


class SqueezeNet(nn.Module):
  """SqueezeNet 1.1: the stem and six of its eight fire modules."""

  dims: presets.SqueezeNetDims
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    x = jax.nn.relu(layers.Conv(self.dims.stem, 3, self.dtype, stride=2, padding=0, name="stem")(x))
    outputs = [x]
    for i, (squeeze, expand) in enumerate(zip(self.dims.squeeze, self.dims.expand)):
      if i in _POOLED_FIRES:
        x = _pool_rounded_up(x)
      x = Fire(squeeze, expand, self.dtype, name=f"fire{i}")(x)
      if i in _COMPARED_FIRES:
        outputs.append(x)
    return outputs


class Fire(nn.Module):
  """Convolutions of 1×1 and of 3×3 pixels on fewer channels, concatenated."""

  squeeze: int
  expand: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    unit = lambda channels, side, name, y: jax.nn.relu(
        layers.Conv(channels, side, self.dtype, name=name)(y))
    x = unit(self.squeeze, 1, "squeeze", x)
    return jnp.concatenate(
        [unit(self.expand, 1, "expand1x1", x), unit(self.expand, 3, "expand3x3", x)], -1)


def _pool_rounded_up(x: jax.Array) -> jax.Array:
  """Takes maxima of 3 × 3 pixels with stride 2; the last window may reach over the border (ceil_mode)."""
  return nn.max_pool(x, (3, 3), (2, 2), [(0, (side - 3) % 2) for side in x.shape[1:3]])


# {class of the dimensions: (name of the trunk's parameters, trunk)}
TRUNKS = {
    presets.VggDims: ("vgg", Vgg16), presets.AlexNetDims: ("alex", AlexNet),
    presets.SqueezeNetDims: ("squeeze", SqueezeNet)}
