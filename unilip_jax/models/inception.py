"""Inception-v3 as the Fréchet inception distance uses it: TensorFlow's weights of 2015-12-05.

Its differences from torchvision's ImageNet network (arXiv 1512.00567): 1008 classes, no auxiliary head, no
input transform; average poolings do not count the padding; the pooling branch of Mixed_7c takes maxima.
Computed in float32 at the highest precision, since features are compared across programs.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from unilip_jax.ops import conv
from unilip_jax.sharding import activations

SIDE = 299  # pixels per side of the input
_EPS = 1e-3
_WIDTH = 32  # of the first convolution at the published size


@dataclasses.dataclass(frozen=True)
class InceptionDims:
  """Dimensions of Inception-v3; `divisor` divides every number of channels (1: published)."""

  divisor: int = 1
  classes: int = 1008

  @property
  def features(self) -> int:
    """Channels of the last block."""
    return 2048 // self.divisor


@dataclasses.dataclass(frozen=True)
class Unit:
  """Describes a convolution with batch norm and ReLU.

  Attributes:
    name: within its block, as in the files of weights.
    channels: of the output, at the published size.
    kernel: height and width.
    stride: of both axes.
    padded: by kernel // 2 on every side.
  """

  name: str
  channels: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padded: bool = True


# A branch is a sequence of units and poolings; its last step may be a tuple of units, whose outputs are
# concatenated. A block concatenates its branches.
_Step = Unit | str | tuple[Unit, ...]
_Block = tuple[tuple[_Step, ...], ...]


def _block_a(pool: int) -> _Block:
  return (
      (Unit("branch1x1", 64),),
      (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
      (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), Unit("branch3x3dbl_3", 96, (3, 3))),
      ("average", Unit("branch_pool", pool)))


def _block_c(c: int) -> _Block:
  return (
      (Unit("branch1x1", 192),),
      (Unit("branch7x7_1", c), Unit("branch7x7_2", c, (1, 7)), Unit("branch7x7_3", 192, (7, 1))),
      (Unit("branch7x7dbl_1", c), Unit("branch7x7dbl_2", c, (7, 1)), Unit("branch7x7dbl_3", c, (1, 7)),
       Unit("branch7x7dbl_4", c, (7, 1)), Unit("branch7x7dbl_5", 192, (1, 7))),
      ("average", Unit("branch_pool", 192)))


def _block_e(pooling: str) -> _Block:
  split = lambda name: (Unit(f"{name}a", 384, (1, 3)), Unit(f"{name}b", 384, (3, 1)))
  return (
      (Unit("branch1x1", 320),),
      (Unit("branch3x3_1", 384), split("branch3x3_2")),
      (Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, (3, 3)), split("branch3x3dbl_3")),
      (pooling, Unit("branch_pool", 192)))


def _reduced(name: str, channels: int) -> Unit:
  return Unit(name, channels, (3, 3), stride=2, padded=False)


_STEM: tuple[_Step, ...] = (
    _reduced("Conv2d_1a_3x3", 32), Unit("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Unit("Conv2d_2b_3x3", 64, (3, 3)), "reduce", Unit("Conv2d_3b_1x1", 80),
    Unit("Conv2d_4a_3x3", 192, (3, 3), padded=False), "reduce")
_BLOCKS: dict[str, _Block] = {
    "Mixed_5b": _block_a(32), "Mixed_5c": _block_a(64), "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (_reduced("branch3x3", 384),),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), _reduced("branch3x3dbl_3", 96)),
        ("reduce",)),
    "Mixed_6b": _block_c(128), "Mixed_6c": _block_c(160), "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        (Unit("branch3x3_1", 192), _reduced("branch3x3_2", 320)),
        (Unit("branch7x7x3_1", 192), Unit("branch7x7x3_2", 192, (1, 7)),
         Unit("branch7x7x3_3", 192, (7, 1)), _reduced("branch7x7x3_4", 192)),
        ("reduce",)),
    "Mixed_7b": _block_e("average"), "Mixed_7c": _block_e("maximum")}


def unit_names() -> Iterator[str]:
  """Yields the name of each convolution, "Mixed_5b/branch1x1" for those of a block."""
  yield from (unit.name for unit in _units(_STEM))
  for name, block in _BLOCKS.items():
    yield from (f"{name}/{unit.name}" for branch in block for unit in _units(branch))


def _units(steps: tuple[_Step, ...]) -> Iterator[Unit]:
  for step in steps:
    if isinstance(step, Unit):
      yield step
    elif isinstance(step, tuple):
      yield from step


def dims_of_width(width: int, classes: int) -> InceptionDims:
  """Returns the dimensions of a network whose first convolution has `width` channels."""
  return InceptionDims(divisor=_WIDTH // width, classes=classes)


class Inception(nn.Module):
  """Features and logits of images."""

  dims: InceptionDims

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """Computes features.

    Args:
      x: float32[B, 299, 299, 3], resized and scaled as evals/inception.py does.

    Returns:
      float32 outputs by torch-fidelity's names, the first four averaged over space: "64", "192", "768",
      "2048" (the distance's), "logits_unbiased" (without the last bias: the inception score's), "logits".
    """
    features, pooled = {}, iter(("64", "192"))
    for step in _STEM:
      x = _run(x, (step,), self.dims.divisor)
      if step == "reduce":
        features[next(pooled)] = x.mean((1, 2))
      else:
        self.sow("intermediates", f"{step.name}_output", x)
    for name, block in _BLOCKS.items():
      x = Block(block, self.dims.divisor, name=name)(x)
      self.sow("intermediates", f"{name}_output", x)
      if name == "Mixed_6e":
        features["768"] = x.mean((1, 2))
    features["2048"] = x.mean((1, 2))
    kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.dims.classes))
    bias = self.param("fc_bias", nn.initializers.zeros, (self.dims.classes,))
    logits = jnp.matmul(features["2048"], kernel, precision="highest")
    return features | {"logits_unbiased": logits, "logits": logits + bias[None]}


class Block(nn.Module):
  """Branches whose outputs are concatenated."""

  branches: Any
  divisor: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.concatenate([_run(x, branch, self.divisor) for branch in self.branches], -1)


def _run(x: jax.Array, steps: tuple[_Step, ...], divisor: int) -> jax.Array:
  """Applies steps one after another, within a compact method."""
  for step in steps:
    if isinstance(step, str):
      x = _POOLINGS[step](x)
    elif isinstance(step, Unit):
      x = ConvBnRelu(step, divisor, name=step.name)(x)
    else:
      x = jnp.concatenate([ConvBnRelu(unit, divisor, name=unit.name)(x) for unit in step], -1)
  return x


_SAME = ((1, 1), (1, 1))
_POOLINGS = {
    "average": lambda x: nn.avg_pool(x, (3, 3), (1, 1), _SAME, count_include_pad=False),
    "maximum": lambda x: nn.max_pool(x, (3, 3), (1, 1), _SAME),
    "reduce": lambda x: nn.max_pool(x, (3, 3), (2, 2))}


class ConvBnRelu(nn.Module):
  """Convolution without bias, batch norm by stored statistics, ReLU."""

  unit: Unit
  divisor: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    unit, channels = self.unit, self.unit.channels // self.divisor
    x = activations.constrain(x, "batch")
    kernel = self.param("kernel", nn.initializers.he_normal(), (*unit.kernel, x.shape[-1], channels))
    scale, bias, mean, var = (
        self.param(name, init, (channels,)) for name, init in (
            ("scale", nn.initializers.ones), ("bias", nn.initializers.zeros),
            ("mean", nn.initializers.zeros), ("var", nn.initializers.ones)))
    padding = [(k // 2 if unit.padded else 0,) * 2 for k in unit.kernel]
    x = jax.lax.conv_general_dilated(
        x, kernel, (unit.stride, unit.stride), padding, dimension_numbers=conv.DIMS,
        precision=jax.lax.Precision.HIGHEST)
    factor = scale / jnp.sqrt(var + _EPS)
    return jax.nn.relu(x * factor[None, None, None] + (bias - mean * factor)[None, None, None])
