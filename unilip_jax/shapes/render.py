"""Renders scenes in NumPy: anti-aliased shapes, a gradient of light and a weak texture.

Coverage is computed from signed distances: a pixel's coverage by a shape is its distance to the edge,
clipped to one pixel. Everything scales with the resolution; the native one is 112 px.
"""

import functools

import numpy as np

from unilip_jax.shapes import scene as scene_lib

SIZE = 112  # pixels per side
RADIUS = {"small": 8.5, "large": 14.0}  # pixels at 112 px
RGB = {
    "red": (215, 45, 45), "green": (50, 160, 70), "blue": (50, 90, 215), "yellow": (245, 205, 50),
    "purple": (145, 65, 175), "orange": (240, 130, 35)}
BACKGROUND_RGB = {
    "white": (238, 238, 238), "grey": (140, 142, 145), "cream": (232, 214, 180), "navy": (38, 44, 82)}

_GRADIENT = 14.0  # brightness from the top left to the bottom right corner, of 255
_TEXTURE = 3.0  # amplitude of the stripes on objects, of 255


def cell_centre(row: int, column: int, size: int = SIZE) -> tuple[float, float]:
  """(y, x) of a cell's centre in pixels."""
  step = size / scene_lib.GRID
  return (row + 0.5) * step, (column + 0.5) * step


def render(scene: scene_lib.Scene, size: int = SIZE) -> np.ndarray:
  """Renders a scene.

  Args:
    scene: to render.
    size: pixels per side.

  Returns:
    uint8[size, size, 3], sRGB.
  """
  y, x = _coordinates(size)
  scale = size / SIZE
  light = _light(size)
  image = np.asarray(BACKGROUND_RGB[scene.background], np.float32) + light
  for block in scene.blocks:
    cy, cx = cell_centre(block.row, block.column, size)
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
def _coordinates(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Pixel centres: [size, 1] rows and [1, size] columns."""
  centres = np.arange(size, dtype=np.float32) + 0.5
  return centres[:, None], centres[None]


@functools.lru_cache(maxsize=8)
def _light(size: int) -> np.ndarray:
  y, x = _coordinates(size)
  return (_GRADIENT * (0.5 - (y + x) / (2 * size)))[..., None].astype(np.float32)
