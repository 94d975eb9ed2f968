"""The interface of a vision tower: images in [0, 1] to a grid of features.

A tower owns its normalisation and how its patches become tokens, so that the rest of the model needs two
numbers of it: the pixels per side of a token and the channels of a token. A tower is a row of the group
"vision_tower" in common/registry.py; docs/extend.md adds one.
"""

import abc
from typing import Any, ClassVar

from flax import linen as nn
import jax

from unilip_jax.common import registry

FIRST_KIND = "internvit"  # of dimensions that name no kind: model.json before there were several

registry.register("vision_tower", FIRST_KIND, "unilip_jax.models.vision.internvit:InternVit")


class VisionDims(abc.ABC):
  """Sizes of a tower: a frozen dataclass whose fields model.json holds.

  Attributes:
    kind: the tower's name in the registry.
    image_size: pixels per side of the images for which the tower stores positions.
  """

  kind: ClassVar[str]
  image_size: int

  @property
  @abc.abstractmethod
  def pixels_per_token(self) -> int:
    """Pixels per side of one token."""

  @property
  @abc.abstractmethod
  def token_width(self) -> int:
    """Channels of one token."""


class VisionTower(nn.Module):
  """A vision encoder without its class token and head.

  Attributes:
    dims: sizes.
    dtype: of the computation.
    remat: policy of one layer (layers.remat).
    Dims: class of `dims`.
  """

  dims: VisionDims
  dtype: Any
  remat: str

  Dims: ClassVar[type[VisionDims]]

  @property
  def pixels_per_token(self) -> int:
    """Pixels per side of one token."""
    return self.dims.pixels_per_token

  @property
  def width(self) -> int:
    """Channels of one token."""
    return self.dims.token_width

  def grid(self, unit: jax.Array) -> tuple[int, int]:
    """Computes (tokens per column, tokens per row) of images [B, H, W, 3].

    Raises:
      ValueError: if a side is not a multiple of `pixels_per_token`.
    """
    side, (height, width) = self.pixels_per_token, unit.shape[1:3]
    if height % side or width % side:
      raise ValueError(
          f"image {height}×{width} is not a multiple of {side} pixels, the side of one token; "
          "resize or pad it")
    return height // side, width // side

  def __call__(self, unit: jax.Array) -> jax.Array:
    """Normalises and encodes images.

    Args:
      unit: float32[B, H, W, 3] in [0, 1], H and W multiples of `pixels_per_token`.

    Returns:
      dtype[B, h, w, width], without class tokens.

    Raises:
      ValueError: see `grid`.
    """
    raise NotImplementedError


def tower_class(kind: str) -> type[VisionTower]:
  """Finds the tower of that name.

  Raises:
    ValueError: for an unknown name, listing those that there are.
  """
  return registry.find("vision_tower", kind)


def make_tower(dims: VisionDims, dtype: Any, remat: str) -> VisionTower:
  """Makes the tower that `dims` are of; arguments as of `VisionTower`."""
  return tower_class(dims.kind)(dims, dtype, remat)
