"""InternVL's dynamic tiling: a large image as 1 to 12 square tiles and a thumbnail.

Reference: InternVL3's preprocessing (arXiv 2404.16821, section 3): the grid whose aspect ratio is
nearest to the image's; of equally near ones a finer grid counts where the image has pixels for at
least half of it.
"""

import numpy as np
from PIL import Image


def grid_for(width: int, height: int, size: int, most: int) -> tuple[int, int]:
  """(columns, rows) of tiles for an image.

  Args:
    width: of the image, pixels.
    height: of the image, pixels.
    size: pixels per side of a tile.
    most: tiles at most.
  """
  grids = sorted({(i, j) for i in range(1, most + 1) for j in range(1, most // i + 1)},
                 key=lambda grid: grid[0] * grid[1])
  ratio, best, nearest = width / height, (1, 1), float("inf")
  for columns, rows in grids:
    distance = abs(ratio - columns / rows)
    enough = width * height > 0.5 * size * size * columns * rows
    if distance < nearest or (distance == nearest and enough):
      best, nearest = (columns, rows), distance
  return best


def tiles(image: Image.Image, size: int, most: int) -> np.ndarray:
  """Cuts an image.

  Args:
    image: RGB.
    size: pixels per side of a tile.
    most: tiles at most, the thumbnail not counted; 1 squashes the image into one.

  Returns:
    uint8[T, size, size, 3]: tiles row by row, then, if they are several, the whole image squashed.
  """
  columns, rows = grid_for(*image.size, size, most)
  bicubic = Image.Resampling.BICUBIC
  whole = np.asarray(image.resize((columns * size, rows * size), bicubic))
  parts = whole.reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4)
  parts = parts.reshape(-1, size, size, 3)
  if len(parts) == 1:
    return parts
  return np.concatenate([parts, np.asarray(image.resize((size, size), bicubic))[None]])
