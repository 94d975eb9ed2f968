"""Reads the images that clients send: data URLs and files, bounded in pixels before they are decoded.

No address is ever fetched: an image is in the request or it is refused.
"""

import base64
import binascii
import io
import pathlib
import re

import numpy as np
from PIL import Image

from unilip_jax.data import decode
from unilip_jax.serve import api_errors

_DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.ASCII | re.IGNORECASE)
_HEADER_CHARS = 200
_SPACE = str.maketrans("", "", " \r\n\t")
FORMATS = ("png", "jpeg", "webp")


def from_url(url: object, param: str, max_pixels: int) -> np.ndarray:
  """Reads a data URL as uint8[H, W, 3].

  Raises:
    ApiError: 400 for every other kind of address, and for what `from_bytes` refuses.
  """
  if not isinstance(url, str) or url[:5].lower() != "data:":
    raise api_errors.ApiError(
        400, "url_not_supported", "an image must be a data URL (data:image/png;base64,…); this server "
        "fetches no address", param)
  header = _DATA_URL.match(url[:_HEADER_CHARS])
  try:
    if header is None:
      raise ValueError
    data = base64.b64decode(url[header.end():].translate(_SPACE), validate=True)
  except (binascii.Error, ValueError):
    raise api_errors.ApiError(
        400, "invalid_image", "the data URL is not of the form data:image/png;base64,…", param) from None
  return from_bytes(data, param, max_pixels)


def from_bytes(data: bytes, param: str, max_pixels: int) -> np.ndarray:
  """Decodes an image of any known format as uint8[H, W, 3], whatever its name or type.

  Raises:
    ApiError: 400 for other bytes and for images with too many pixels.
  """
  try:
    _, width, height = decode.describe(data, 2**62)
    if width * height > max_pixels:
      raise api_errors.ApiError(
          400, "image_too_large", f"the image has {width}×{height} pixels, at most {max_pixels} are taken",
          param)
    return decode.pixels(data, max_pixels)
  except decode.BadImageError:  # its message may hold a library's
    raise api_errors.ApiError(
        400, "invalid_image", "the image is empty, damaged or of an unknown format; send PNG, JPEG, WebP, "
        "BMP, GIF or TIFF", param) from None


def from_file(path: str, param: str, max_pixels: int) -> np.ndarray:
  """Decodes a file that the page has stored; otherwise as `from_bytes`."""
  return from_bytes(pathlib.Path(path).read_bytes(), param, max_pixels)


def encode(pixels: np.ndarray, kind: str = "png", quality: int = 95) -> bytes:
  """Encodes uint8[H, W, 3] as one of FORMATS; `quality` 0 to 100 is of JPEG and WebP."""
  file = io.BytesIO()
  options = {} if kind == "png" else {"quality": quality}
  Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


def as_base64(data: bytes) -> str:
  """Returns bytes as text, as the API carries them."""
  return base64.b64encode(data).decode()
