"""Describes into how many tiles the images of an understanding benchmark are cut (data/tiles.py).

An answer from one tile and one from dynamic tiling are of different settings, so that a result has both the
limit and what it meant for these images.
"""

import collections
from collections.abc import Sequence
import io

from PIL import Image

from unilip_jax.common import paths
from unilip_jax.data import tiles
from unilip_jax.scores import base


def describe(
    items: Sequence[base.Item], size: int, max_tiles: int, *, first_image_scale: int = 1) -> str:
  """Counts tiles by the sizes in the images' headers.

  Args:
    items: of the benchmark.
    size: pixels per side of a tile.
    max_tiles: most tiles of an image, without the thumbnail; several images share tiles.TOTAL.
    first_image_scale: of the benchmark.

  Returns:
    For example "dynamic, at most 6 tiles of 448 pixels and a thumbnail; images by tiles: 1: 40, 7: 12".
  """
  counts = collections.Counter(
      n for item in items for n in _counts(item, size, max_tiles, first_image_scale))
  kind = (f"one tile of {size} pixels, stretched" if max_tiles == 1 else
          f"dynamic, at most {max_tiles} tiles of {size} pixels and a thumbnail")
  several = sum(len(item.images) > 1 for item in items)
  return (f"{kind}; images by tiles: {', '.join(f'{n}: {counts[n]}' for n in sorted(counts)) or 'none'}"
          + (f"; {several} questions have several images" if several else ""))


def _counts(item: base.Item, size: int, max_tiles: int, first_image_scale: int) -> list[int]:
  """Tiles of each image of an item, with the thumbnail."""
  limit = tiles.per_image(max_tiles, len(item.images))
  counts = []
  for k, image in enumerate(item.images):
    width, height = (side * (first_image_scale if k == 0 else 1) for side in _image_size(item, image))
    columns, rows = tiles.grid_for(width, height, size, limit)
    counts.append(columns * rows + (columns * rows > 1))
  return counts


def _image_size(item: base.Item, image: str | bytes) -> tuple[int, int]:
  """(width, height) of an image by its header.

  Raises:
    FileNotFoundError, ValueError: for an image that is absent or broken, with the item's id.
  """
  if not isinstance(image, bytes):
    path = paths.path(image)
    if not paths.is_file(path):
      raise FileNotFoundError(f"item {item.id}: no image {image}")
    image = path.read_bytes()
  try:
    with Image.open(io.BytesIO(image)) as opened:
      return opened.size
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f"item {item.id}: its image cannot be read: {error}") from error
