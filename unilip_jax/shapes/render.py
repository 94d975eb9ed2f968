"""Renders scenes in NumPy: anti-aliased shapes, a gradient of light and a weak texture.

Coverage is computed from signed distances: a pixel's coverage by a shape is its distance to the edge,
clipped to one pixel. Everything scales with the resolution; the native one is 112 px. On a wide or a tall
canvas objects have the same size, and the cells of the grid another shape.
"""

import functools

import numpy as np

from unilip_jax.shapes import scene as scene_lib

SIZE = 112  # pixels per side of the square
# (height, width) at the native resolution: with at most the tokens of the square, at 28 px per token.
CANVASES = {"square": (SIZE, SIZE), "wide": (84, 140), "tall": (140, 84)}
RADIUS = {"small": 8.5, "large": 14.0}  # pixels at 112 px
RGB = {
    "red": (215, 45, 45), "green": (50, 160, 70), "blue": (50, 90, 215), "yellow": (245, 205, 50),
    "purple": (145, 65, 175), "orange": (240, 130, 35)}
BACKGROUND_RGB = {
    "white": (238, 238, 238), "grey": (140, 142, 145), "cream": (232, 214, 180), "navy": (38, 44, 82)}

_GRADIENT = 14.0  # brightness from the top left to the bottom right corner, of 255
_TEXTURE = 3.0  # amplitude of the stripes on objects, of 255


def pixels(canvas: str = "square", size: int = SIZE) -> tuple[int, int]:
  """Returns (height, width) of a canvas whose square has `size` pixels per side.

  Raises:
    ValueError: for an unknown canvas.
  """
  if canvas not in CANVASES:
    raise ValueError(f"unknown canvas {canvas!r}; choose {', '.join(CANVASES)}")
  height, width = CANVASES[canvas]
  return round(height * size / SIZE), round(width * size / SIZE)


def cell_centre(
    row: int, column: int, size: int = SIZE, canvas: str = "square") -> tuple[float, float]:
  """(y, x) of a cell's centre in pixels."""
  height, width = pixels(canvas, size)
  return (row + 0.5) * (height / scene_lib.GRID), (column + 0.5) * (width / scene_lib.GRID)


def render(scene: scene_lib.Scene, size: int = SIZE, canvas: str = "square") -> np.ndarray:
  """Renders a scene.

  Args:
    scene: to render.
    size: pixels per side of the square.
    canvas: of CANVASES.

  Returns:
    uint8[height, width, 3], sRGB; see `pixels`.
  """
  shape = pixels(canvas, size)
  y, x = _coordinates(*shape)
  scale = size / SIZE
  light = _light(*shape)
  image = np.asarray(BACKGROUND_RGB[scene.background], np.float32) + light
  for block in scene.blocks:
    cy, cx = cell_centre(block.row, block.column, size, canvas)
    radius = RADIUS[block.size] * scale
    reach = int(np.ceil(radius * 1.2)) + 2  # only a patch around the object changes
    rows = slice(max(0, int(cy) - reach), int(cy) + reach)
    columns = slice(max(0, int(cx) - reach), int(cx) + reach)
    dy, dx = y[rows] - cy, x[:, columns] - cx
    inside = np.clip(0.5 - distance(block.shape, dy, dx, radius), 0.0, 1.0)[..., None]
    stripes = _TEXTURE * np.sin((dy + dx) * (1.1 / scale))[..., None]
    colour = np.asarray(RGB[block.colour], np.float32) + stripes + light[rows, columns]
    image[rows, columns] += inside * (colour - image[rows, columns])
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def distance(shape: str, dy: np.ndarray, dx: np.ndarray, radius: float) -> np.ndarray:
  """Signed distance in pixels to the edge of a shape centred at 0; negative inside.

  Args:
    shape: of scene.SHAPES.
    dy: [h, 1] rows from the centre.
    dx: [1, w] columns from the centre.
    radius: of the circle; other shapes have about the same area or extent.

  Raises:
    ValueError: for an unknown shape.
  """
  if shape == "circle":
    return np.hypot(dy, dx) - radius
  if shape == "square":
    return np.maximum(np.abs(dy), np.abs(dx)) - radius * 0.88
  if shape == "triangle":  # pointing up
    slope = np.hypot(2.0, 1.0)
    sides = (2.0 * np.abs(dx) - dy - radius) / slope
    return np.maximum(sides, dy - radius * 0.9)
  if shape == "cross":
    arm, reach = radius * 0.36, radius
    upright = np.maximum(np.abs(dx) - arm, np.abs(dy) - reach)
    across = np.maximum(np.abs(dy) - arm, np.abs(dx) - reach)
    return np.minimum(upright, across)
  raise ValueError(f"unknown shape {shape!r}; known: {', '.join(scene_lib.SHAPES)}")


@functools.lru_cache(maxsize=8)
def _coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Pixel centres: [height, 1] rows and [1, width] columns."""
  centres = lambda size: np.arange(size, dtype=np.float32) + 0.5
  return centres(height)[:, None], centres(width)[None]


@functools.lru_cache(maxsize=8)
def _light(height: int, width: int) -> np.ndarray:
  y, x = _coordinates(height, width)
  return (_GRADIENT * (0.5 - (y + x) / (height + width)))[..., None].astype(np.float32)
