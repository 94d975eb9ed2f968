"""Image grids: an input row above the row of its reconstructions, as PNG."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4  # pixels between images
_LABEL = 18  # pixels of height of a row's label
_FONT_SIZE = 12
_COLUMNS = 8


def reconstruction_grid(
    inputs: np.ndarray, reconstructions: np.ndarray, *, columns: int = _COLUMNS
) -> bytes:
  """Pairs of rows: inputs, and under each its reconstruction.

  Args:
    inputs: uint8[B, H, W, 3].
    reconstructions: uint8[B, H, W, 3].
    columns: images per row at most; more images go to further pairs of rows.

  Returns:
    A PNG file.

  Raises:
    ValueError: for arrays of other dtypes or shapes.
  """
  inputs, reconstructions = np.asarray(inputs), np.asarray(reconstructions)
  for name, array in (("inputs", inputs), ("reconstructions", reconstructions)):
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not array.size:
      raise ValueError(f"{name}: expected uint8[B, H, W, 3], got {array.dtype}{array.shape}")
  if inputs.shape != reconstructions.shape:
    raise ValueError(f"inputs {inputs.shape} and reconstructions {reconstructions.shape} differ")
  rows = []
  for start in range(0, len(inputs), columns):
    part = slice(start, start + columns)
    rows += [("input", inputs[part]), ("reconstruction", reconstructions[part])]
  return labelled_rows(rows)


def labelled_rows(rows: list[tuple[str, np.ndarray]]) -> bytes:
  """Rows of images of one size, each under its label.

  Args:
    rows: (label, uint8[n, H, W, 3]) per row.

  Returns:
    A PNG file.
  """
  height, width = rows[0][1].shape[1:3]
  columns = max(len(images) for _, images in rows)
  font = ImageFont.load_default(_FONT_SIZE)
  # A label may be wider than a single small image.
  labels = max(math.ceil(font.getlength(label)) for label, _ in rows) + 2 * _GAP
  canvas = Image.new("RGB", (
      max(columns * (width + _GAP) + _GAP, labels),
      len(rows) * (height + _LABEL + _GAP) + _GAP), "white")
  draw = ImageDraw.Draw(canvas)
  for r, (label, images) in enumerate(rows):
    top = r * (height + _LABEL + _GAP)
    draw.text((_GAP, top + 2), label, fill=(70, 70, 70), font=font)
    for c, image in enumerate(images):
      canvas.paste(Image.fromarray(image), (_GAP + c * (width + _GAP), top + _LABEL))
  buffer = io.BytesIO()
  canvas.save(buffer, format="PNG", optimize=True)
  return buffer.getvalue()
