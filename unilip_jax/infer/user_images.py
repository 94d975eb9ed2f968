"""Images as users pass them: PIL images or arrays, one or several."""

from typing import Any

import numpy as np
from PIL import Image

from unilip_jax.data import decode

UserImage = Image.Image | np.ndarray


def as_list(images: Any) -> tuple[list[Any], bool]:
  """(list of images, whether a single one was passed)."""
  if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
    return [images], True
  return list(images), False


def as_array(image: UserImage) -> np.ndarray:
  """uint8[H, W, 3].

  Raises:
    ValueError: for anything that is no RGB image.
  """
  if isinstance(image, Image.Image):
    return np.asarray(image.convert("RGB"))
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
    raise ValueError(f"an image must be a PIL image or uint8[H, W, 3], not "
                     f"{pixels.dtype}{list(pixels.shape)}")
  return pixels


def stretched(image: UserImage, size: int) -> np.ndarray:
  """uint8[size, size, 3], resized without keeping the aspect ratio."""
  return np.asarray(decode.fit(Image.fromarray(as_array(image)), size, "stretch", None))
