"""Reads a scene from an image by template matching, without a learned model.

The background is measured where no object can be. Each cell is then compared with templates of every shape,
size and colour, shifted by up to a pixel and blurred moderately, and with the empty cell; the least squared
error wins. An image is unclear if no template fits a cell well, so that noise, smears and blends of images
are not read as objects.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools

import numpy as np
from PIL import Image

from unilip_jax.shapes import render
from unilip_jax.shapes import scene as scene_lib

_SHIFTS = (-1, 0, 1)  # pixels off the cell's centre
_BLURS = (0.0, 1.0, 2.0)  # standard deviations in pixels; more would make small objects look faint
_AT_ONCE = 64  # images, 10 MB
_GUTTER = 16.5  # pixels from a cell's centre, beyond which there is no object

# Largest deviations of a clear image, of 255. A half transparent object deviates by half its contrast.
_BACKGROUND_LIMIT = 24.0  # the largest channel of the measured background
_EMPTY_LIMIT = 9.0  # root mean square over a cell
_CONTRAST_LIMIT = 0.42  # of an object's own root mean square against the background


@dataclasses.dataclass(frozen=True)
class Reading:
  """The scene of an image.

  Attributes:
    scene: the closest scene, a guess if the image is unclear; it may have no object. None if the
      background is none of scene.BACKGROUNDS.
    residual: the largest deviation from that scene, of a cell or of the background, divided by its limit;
      0 is perfect.
    clear: whether the residual is at most 1.
  """

  scene: scene_lib.Scene | None
  residual: float
  clear: bool


def verify(image: np.ndarray) -> scene_lib.Scene | None:
  """Returns the scene that an image shows clearly, otherwise None; errors as of `read`."""
  return verify_all([image])[0]


def verify_all(
    images: Sequence[np.ndarray], canvas: str = "square") -> list[scene_lib.Scene | None]:
  """Returns for each image the scene that it shows clearly, otherwise None; as of `read_all`."""
  return [reading.scene if reading.clear else None for reading in read_all(images, canvas)]


def read(image: np.ndarray) -> Reading:
  """Reads an image.

  Args:
    image: uint8[height, width, 3], sRGB; another size than 112 px is resized first.

  Raises:
    ValueError: for another shape or type.
  """
  return read_all([image])[0]


def read_all(images: Sequence[np.ndarray], canvas: str = "square") -> list[Reading]:
  """Reads images, `_AT_ONCE` at a time: one matrix multiplication a cell serves all of them.

  Args:
    images: uint8[height, width, 3] each, sRGB; another size than the canvas's is resized first.
    canvas: of render.CANVASES, on which the scenes were rendered.

  Raises:
    ValueError: for another shape or type, or an unknown canvas.
  """
  readings: list[Reading] = []
  for start in range(0, len(images), _AT_ONCE):
    part = images[start:start + _AT_ONCE]
    readings += _read_part(np.stack([_resized(image, canvas) for image in part]) - _light(canvas), canvas)
  return readings


def _read_part(flat: np.ndarray, canvas: str) -> list[Reading]:
  """Reads float32[B, height, width, 3], images of a canvas without the gradient of light."""
  measured = np.median(flat[:, _gutters(canvas)], axis=1)  # [B, 3]
  backgrounds = np.asarray([render.BACKGROUND_RGB[name] for name in scene_lib.BACKGROUNDS])
  misses = np.abs(measured[:, None] - backgrounds).max(-1)  # [B, backgrounds]
  background = misses.argmin(1)
  residual = misses.min(1) / _BACKGROUND_LIMIT
  known = residual <= 1
  contrasts = np.asarray([render.RGB[c] for c in scene_lib.COLOURS], np.float32) - measured[:, None]
  power = (contrasts**2).sum(-1)  # [B, colours]
  blocks: list[list[scene_lib.Block]] = [[] for _ in flat]
  every = np.arange(len(flat))
  for cell in _cells(canvas):
    values = (flat[:, cell.rows, cell.columns] - measured[:, None, None]).reshape(len(flat), -1, 3)
    pixels = 3 * values.shape[1]
    nothing = (values**2).sum((1, 2))
    covered = np.tensordot(cell.templates, values, (1, 1)).swapaxes(0, 1)  # [B, templates, 3]
    error = (nothing[:, None, None] - 2.0 * covered @ contrasts.swapaxes(1, 2)
             + cell.squares[:, None] * power[:, None]).reshape(len(flat), -1)
    chosen = error.argmin(1)
    best, colour = np.divmod(chosen, len(scene_lib.COLOURS))
    least = error[every, chosen]
    occupied = least < nothing
    signal = np.sqrt(cell.squares[best] * power[every, colour] / pixels)
    limit = np.where(occupied, _CONTRAST_LIMIT * signal, _EMPTY_LIMIT)
    deviation = np.sqrt(np.maximum(np.minimum(nothing, least), 0.0) / pixels)
    residual = np.where(known, np.maximum(residual, deviation / limit), residual)
    for i in np.flatnonzero(occupied & known):
      shape, size = cell.names[best[i]]
      blocks[i].append(scene_lib.Block(
          cell.row, cell.column, shape, scene_lib.COLOURS[colour[i]], size))
  return [
      Reading(scene_lib.Scene(tuple(blocks[i]), scene_lib.BACKGROUNDS[background[i]]) if known[i] else None,
              float(residual[i]), bool(residual[i] <= 1)) for i in every]


def _resized(image: np.ndarray, canvas: str) -> np.ndarray:
  """Resizes to float32 of a canvas: smaller by averaging, larger by cubic interpolation."""
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(
        f"image {image.dtype}{list(image.shape)}; verify reads uint8[height, width, 3]")
  height, width = render.pixels(canvas)
  if image.shape[:2] != (height, width):
    shrinks = min(image.shape[0] / height, image.shape[1] / width) >= 1
    image = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
  return np.asarray(image, np.float32)


@dataclasses.dataclass(frozen=True)
class _Cell:
  """Pixels of a cell, and how every object would cover them.

  Attributes:
    row: of the grid.
    column: of the grid.
    rows: of pixels.
    columns: of pixels.
    names: (shape, size) of each template.
    templates: float32[templates, pixels], coverage from 0 to 1.
    squares: float32[templates], sums of squared coverage.
  """

  row: int
  column: int
  rows: slice
  columns: slice
  names: list[tuple[str, str]]
  templates: np.ndarray
  squares: np.ndarray


@functools.cache
def _light(canvas: str) -> np.ndarray:
  """The gradient of light, float32 of a canvas: an empty image minus its background's colour."""
  name = scene_lib.BACKGROUNDS[0]
  return render.render(scene_lib.Scene((), name), canvas=canvas) - np.float32(render.BACKGROUND_RGB[name])


@functools.cache
def _gutters(canvas: str) -> np.ndarray:
  """bool[height, width]: pixels between the cells and along the border, which no object covers."""
  centres = np.asarray([render.cell_centre(i, i, canvas=canvas) for i in range(scene_lib.GRID)])
  off_y, off_x = (np.abs(np.arange(size)[:, None] + 0.5 - at).min(1)
                  for size, at in zip(render.pixels(canvas), centres.T))
  return np.maximum(off_y[:, None], off_x) > _GUTTER


@functools.cache
def _cells(canvas: str) -> list[_Cell]:
  bounds = [[round(i * size / scene_lib.GRID) for i in range(scene_lib.GRID + 1)]
            for size in render.pixels(canvas)]
  cells = []
  for row, column in itertools.product(range(scene_lib.GRID), repeat=2):
    rows, columns = (slice(*of[at:at + 2]) for of, at in zip(bounds, (row, column)))
    cy, cx = render.cell_centre(row, column, canvas=canvas)
    dy = (np.arange(rows.start, rows.stop) + 0.5 - cy)[:, None]
    dx = (np.arange(columns.start, columns.stop) + 0.5 - cx)[None]
    names, templates = [], []
    for shape, size, blur in itertools.product(scene_lib.SHAPES, scene_lib.SIZES, _BLURS):
      blur_y, blur_x = _blur(dy.size, blur), _blur(dx.size, blur)
      for down, right in itertools.product(_SHIFTS, repeat=2):
        away = render.distance(shape, dy - down, dx - right, render.RADIUS[size])
        names.append((shape, size))
        templates.append((blur_y @ np.clip(0.5 - away, 0.0, 1.0) @ blur_x).ravel())
    stacked = np.stack(templates).astype(np.float32)
    cells.append(_Cell(row, column, rows, columns, names, stacked, (stacked**2).sum(1)))
  return cells


def _blur(length: int, sigma: float) -> np.ndarray:
  """Gaussian blur along one side as a matrix, float64[length, length], with zeros beyond the ends."""
  if not sigma:
    return np.eye(length)
  away = np.arange(length)[:, None] - np.arange(length)
  return np.exp(-0.5 * (away / sigma)**2) / (sigma * np.sqrt(2.0 * np.pi))
