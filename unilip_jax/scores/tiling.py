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


def describe(items: Sequence[base.Item], size: int, max_tiles: int) -> str:
  """Counts tiles by the sizes in the images' headers.

  Args:
    items: of the benchmark; those with several images are not answered and not counted.
    size: pixels per side of a tile.
    max_tiles: most tiles of an image, without the thumbnail.

  Returns:
    For example "dynamic, at most 6 tiles of 448 pixels and a thumbnail; images by tiles: 1: 40, 7: 12".
  """
  counts = collections.Counter(_count(item, size, max_tiles) for item in items if len(item.images) == 1)
  kind = (f"one tile of {size} pixels, stretched" if max_tiles == 1 else
          f"dynamic, at most {max_tiles} tiles of {size} pixels and a thumbnail")
  return f"{kind}; images by tiles: {', '.join(f'{n}: {counts[n]}' for n in sorted(counts)) or 'none'}"


def _count(item: base.Item, size: int, max_tiles: int) -> int:
  """Tiles of the image of an item, with the thumbnail.

  Raises:
    FileNotFoundError, ValueError: for an image that is absent or broken, with the item's id.
  """
  image, = item.images
  if not isinstance(image, bytes):
    path = paths.path(image)
    if not path.is_file():
      raise FileNotFoundError(f"item {item.id}: no image {image}")
    image = path.read_bytes()
  try:
    with Image.open(io.BytesIO(image)) as opened:
      columns, rows = tiles.grid_for(*opened.size, size, max_tiles)
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f"item {item.id}: its image cannot be read: {error}") from error
  return columns * rows + (columns * rows > 1)
