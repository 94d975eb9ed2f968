"""Encodes images as PNG."""

import io

import numpy as np
from PIL import Image


def encode(image: Image.Image | np.ndarray) -> bytes:
  """Returns the PNG file of an image, or of uint8[H, W, 3], at PIL's usual compression."""
  out = io.BytesIO()
  (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, "PNG")
  return out.getvalue()
