"""InternVL's dynamic tiling: a large image becomes 1 to 12 square tiles and a thumbnail.

Reference: InternVL3's preprocessing (arXiv 2404.16821, section 3). The grid has the aspect ratio nearest
to the image's. Of equally near grids a finer one wins if the image has pixels for at least half of it.
"""

import numpy as np
from PIL import Image

TOTAL = 64  # tiles over all images of a question (VLMEvalKit's adapter of InternVL)


def per_image(max_tiles: int, images: int) -> int:
  """Returns the most tiles of each of several images of a question."""
  return max(1, min(max_tiles, TOTAL // max(1, images)))


def grid_for(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
  """Returns (columns, rows) of the tiles of an image.

  Args:
    width: of the image, pixels.
    height: of the image, pixels.
    size: pixels per side of a tile.
    max_tiles: upper bound on columns × rows.
  """
  grids = sorted({(i, j) for i in range(1, max_tiles + 1) for j in range(1, max_tiles // i + 1)},
                 key=lambda grid: grid[0] * grid[1])
  ratio, best, nearest = width / height, (1, 1), float("inf")
  for columns, rows in grids:
    distance = abs(ratio - columns / rows)
    enough = width * height > 0.5 * size * size * columns * rows
    if distance < nearest or (distance == nearest and enough):
      best, nearest = (columns, rows), distance
  return best


def tiles(image: Image.Image, size: int, max_tiles: int) -> np.ndarray:
  """Divides an image into tiles.

  Args:
    image: RGB.
    size: pixels per side of a tile.
    max_tiles: upper bound on the tiles, without the thumbnail; 1 stretches the image to one tile.

  Returns:
    uint8[T, size, size, 3]: tiles row by row; if there are several, then the thumbnail, which is the
    complete image stretched to a square.
  """
  columns, rows = grid_for(*image.size, size, max_tiles)
  bicubic = Image.Resampling.BICUBIC
  pixels = np.asarray(image.resize((columns * size, rows * size), bicubic))
  parts = pixels.reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4)
  parts = parts.reshape(-1, size, size, 3)
  if len(parts) == 1:
    return parts
  return np.concatenate([parts, np.asarray(image.resize((size, size), bicubic))[None]])
