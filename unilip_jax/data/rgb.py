"""Converts an opened image of any mode to 8-bit RGB: one function of training, evaluation and inference.

What a mode leaves open is refused, or noted for the log. docs/data.md has the table.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from unilip_jax.common import tally

_ORIENTATION = 0x0112  # EXIF
MAX_PIXELS = 178_956_970  # of an image that no config limits: data.max_pixels' default
_TRANSPARENT = "transparency is not applied: the colours below it are used"
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF

Note = Callable[[str], None]
count = tally.Tally().note  # of all images of this process


class BadRecordError(ValueError):
  """A record that cannot become an example; the message has the reason."""


class BadImageError(BadRecordError):
  """Bytes that are not a usable image; the message has the reason."""


def to_rgb(image: Image.Image, max_pixels: int, note: Note = count) -> Image.Image:
  """Converts an image, its first frame or the one that was sought.

  Args:
    image: of PIL, of any mode.
    max_pixels: larger images are refused before they are decoded.
    note: logs what is guessed or not used.

  Returns:
    An RGB image.

  Raises:
    BadImageError: for broken, empty or too large images, and values whose range is unknown.
  """
  check_size(image, max_pixels)
  try:
    image.load()
    note_unused(image, note)
    return _convert(image, note)
  except BadImageError:
    raise
  except Exception as error:  # PIL's plugins raise many kinds on hostile bytes
    raise BadImageError(f"{type(error).__name__}: {error}") from error


def check_size(image: Image.Image, max_pixels: int) -> None:
  """Refuses images without pixels and too large ones.

  Raises:
    BadImageError: with the size.
  """
  width, height = image.size
  if width * height > max_pixels:
    raise BadImageError(f"{width}×{height} pixels exceed max_pixels={max_pixels}")
  if min(width, height) < 1:
    raise BadImageError(f"{width}×{height} pixels")


def note_unused(image: Image.Image, note: Note) -> None:
  """Notes what a file holds and this function does not use, as the official code does not."""
  animated, orientation = False, 1
  try:
    animated = getattr(image, "is_animated", False) and not image.tell()
    orientation = image.getexif().get(_ORIENTATION, 1)
  except Exception as error:  # what is damaged here does not make the pixels unusable
    note(f"further frames or EXIF data are damaged: {type(error).__name__}")
  if animated:
    note("of several frames or pages the first is used")
  if orientation in range(2, 9):
    note(f"EXIF orientation {orientation} is not applied; PIL.ImageOps.exif_transpose applies it")
  profile = (image.info.get("icc_profile") or b"")[:4096].replace(b"\0", b"")
  if profile and b"sRGB" not in profile:
    note("a colour profile is not applied; values are used as sRGB")


def _convert(image: Image.Image, note: Note) -> Image.Image:
  if image.mode.startswith("I") or image.mode == "F":
    return Image.fromarray(_grey(image, note)).convert("RGB")
  if image.mode == "LAB":
    raise BadImageError("colours in LAB are not read; save the image as RGB")
  if not image.has_transparency_data:
    return image if image.mode == "RGB" else image.convert("RGB")
  image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
  if image.getchannel("A").getextrema()[0] < 255:
    note(_TRANSPARENT)
  return image.convert("RGB")  # as the official code does


def _grey(image: Image.Image, note: Note) -> np.ndarray:
  """Scales grey values of more than 8 bits to uint8[H, W]."""
  values, tags = np.asarray(image), getattr(image, "tag_v2", {})
  low, high = float(values.min()), float(values.max())
  inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
  if image.mode == "F":
    if not (low >= 0 and high <= 1):  # NaN too
      raise BadImageError(
          f"float values from {low:g} to {high:g}: their range is unknown; scale them to [0, 1]")
    note("float values are used as 0 … 1")
    return np.rint((1 - values if inverted else values) * 255).astype(np.uint8)
  if low < 0 or high > 65535:
    raise BadImageError(f"integer values from {low:g} to {high:g}: their range is unknown; save the image "
                        "with 8 or 16 bits per value")
  bits = 16 if image.mode == "I" else tags.get(_BITS, (16,))[0]
  peak = 2**bits - 1
  if bits == 16 and 0 < high <= 255 and not inverted:
    note("grey values of 16 or 32 bits that are at most 255 are used as 8 bits")
    peak = 255
  elif image.mode == "I":
    note("grey values of 32 bits that are at most 65535 are used as 16 bits")
  table = np.arange(65536)
  table = np.clip(np.rint((peak - table if inverted else table) / (peak / 255)), 0, 255).astype(np.uint8)
  if isinstance(image.info.get("transparency"), int):
    note(_TRANSPARENT)
  return table[values]
