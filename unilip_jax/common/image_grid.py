"""Draws image grids as PNG: inputs in one row, the model's outputs in the row below."""

from collections.abc import Mapping, Sequence
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4  # pixels between images
_LABEL = 18  # pixels of height of a row's label
_FONT_SIZE = 12
_COLUMNS = 8


def paired_rows(rows: Mapping[str, np.ndarray], *, columns: int = _COLUMNS) -> bytes:
  """Draws one row per name; the images of a column belong together.

  Args:
    rows: {label: uint8[B, H, W, 3]}, of equal shapes, e.g. input and reconstruction.
    columns: most images per row; further images go to rows below.

  Returns:
    A PNG file.

  Raises:
    ValueError: for arrays of other dtypes or shapes.
  """
  rows = {name: np.asarray(images) for name, images in rows.items()}
  for name, array in rows.items():
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not array.size:
      raise ValueError(f"{name}: expected uint8[B, H, W, 3], got {array.dtype}{array.shape}")
  shapes = {name: array.shape for name, array in rows.items()}
  if len(set(shapes.values())) != 1:
    raise ValueError(f"the rows differ: {shapes}")
  count = next(iter(shapes.values()))[0]
  return _draw_rows([
      (name, array[start:start + columns]) for start in range(0, count, columns)
      for name, array in rows.items()])


def captioned(images: np.ndarray, captions: Sequence[str], *, columns: int = _COLUMNS) -> bytes:
  """Draws images in reading order, each above its caption, which is cut to the image's width.

  Args:
    images: uint8[B, H, W, 3].
    captions: one for each image.
    columns: images in a row.

  Returns:
    A PNG file.
  """
  count, height, width, _ = images.shape
  columns = min(columns, count)
  font = ImageFont.load_default(_FONT_SIZE)
  cell = (width + _GAP, height + _LABEL + _GAP)
  canvas = Image.new(
      "RGB", (columns * cell[0] + _GAP, math.ceil(count / columns) * cell[1] + _GAP), "white")
  draw = ImageDraw.Draw(canvas)
  for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
    left, top = _GAP + i % columns * cell[0], _GAP + i // columns * cell[1]
    canvas.paste(Image.fromarray(image), (left, top))
    while caption and font.getlength(caption) > width:
      caption = f"{caption[:-2]}…"
    draw.text((left, top + height + 2), caption, fill=(70, 70, 70), font=font)
  return _png(canvas)


def _draw_rows(rows: list[tuple[str, np.ndarray]]) -> bytes:
  """Draws rows of images of one size, each row under its label.

  Args:
    rows: (label, uint8[n, H, W, 3]) per row.

  Returns:
    A PNG file.
  """
  height, width = rows[0][1].shape[1:3]
  columns = max(len(images) for _, images in rows)
  font = ImageFont.load_default(_FONT_SIZE)
  # A label may be wider than a single small image.
  label_width = max(math.ceil(font.getlength(label)) for label, _ in rows) + 2 * _GAP
  canvas = Image.new("RGB", (
      max(columns * (width + _GAP) + _GAP, label_width),
      len(rows) * (height + _LABEL + _GAP) + _GAP), "white")
  draw = ImageDraw.Draw(canvas)
  for r, (label, images) in enumerate(rows):
    top = r * (height + _LABEL + _GAP)
    draw.text((_GAP, top + 2), label, fill=(70, 70, 70), font=font)
    for c, image in enumerate(images):
      canvas.paste(Image.fromarray(image), (_GAP + c * (width + _GAP), top + _LABEL))
  return _png(canvas)


def _png(canvas: Image.Image) -> bytes:
  buffer = io.BytesIO()
  canvas.save(buffer, format="PNG", optimize=True)
  return buffer.getvalue()
