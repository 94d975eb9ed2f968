"""Converts the images that users pass: PIL images or arrays, one or several."""

from typing import Any

import numpy as np
from PIL import Image

from unilip_jax.data import decode

UserImage = Image.Image | np.ndarray


def as_list(images: Any) -> tuple[list[Any], bool]:
  """Returns (list of images, whether a single one was passed)."""
  if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
    return [images], True
  return list(images), False


def as_array(image: UserImage) -> np.ndarray:
  """Converts an image to uint8[H, W, 3].

  Raises:
    ValueError: for an array that is not an RGB image.
  """
  if isinstance(image, Image.Image):
    return np.asarray(image.convert("RGB"))
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
    raise ValueError(f"an image must be a PIL image or uint8[H, W, 3], not "
                     f"{pixels.dtype}{list(pixels.shape)}")
  return pixels


def stretched(image: UserImage, size: int) -> np.ndarray:
  """Resizes an image to uint8[size, size, 3] without keeping the aspect ratio."""
  return np.asarray(decode.fit(Image.fromarray(as_array(image)), size, "stretch", None))
