"""What users hand over as images: PIL or arrays, one or several."""

from typing import Any

import numpy as np
from PIL import Image

from unilip_jax.data import decode

Picture = Image.Image | np.ndarray


def listed(images: Any) -> tuple[list[Any], bool]:
  """(list of pictures, whether one alone was given)."""
  if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
    return [images], True
  return list(images), False


def array(picture: Picture) -> np.ndarray:
  """uint8[H, W, 3].

  Raises:
    ValueError: for anything that is no RGB image.
  """
  if isinstance(picture, Image.Image):
    return np.asarray(picture.convert("RGB"))
  pixels = np.asarray(picture)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
    raise ValueError(f"an image must be a PIL image or uint8[H, W, 3], not "
                     f"{pixels.dtype}{list(pixels.shape)}")
  return pixels


def squashed(picture: Picture, size: int) -> np.ndarray:
  """uint8[size, size, 3], whatever the picture's aspect ratio."""
  return np.asarray(decode.fit(Image.fromarray(array(picture)), size, "stretch", None))
