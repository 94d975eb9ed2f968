"""Decodes images to RGB (rgb.py); resizes and crops them on the host with PIL, bicubic with antialias."""

import io
import warnings

import numpy as np
from PIL import Image

from unilip_jax.common import rectangles
from unilip_jax.data import rgb
from unilip_jax.data.rgb import BadImageError, BadRecordError  # noqa: F401 names of this module too

CROPS = ("random", "center", "stretch")
# Formats that are opened, those of the suffixes in sources.py. Others are refused: decoders of some
# (PostScript) start programs.
_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tiff",
            "PPM": "ppm"}
_SUPPORT = 2.0  # of the bicubic filter, in source pixels where the image is enlarged

# max_pixels is the limit here. Set once for the process: catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: bytes, max_pixels: int, note: rgb.Note = rgb.count) -> Image.Image:
  """Decodes an image completely.

  Args:
    data: a file's bytes.
    max_pixels: larger images are refused before anything is decoded.
    note: see rgb.to_rgb.

  Returns:
    An RGB image.

  Raises:
    BadImageError: for empty, broken, truncated or too large images, and values whose range is unknown.
  """
  return rgb.to_rgb(_open(data, max_pixels), max_pixels, note)


def describe(data: bytes, max_pixels: int) -> tuple[str, int, int]:
  """Returns (suffix of the format, width, height) from the header of an image; otherwise as `decode`."""
  image = _open(data, max_pixels)
  return _FORMATS.get(image.format, "jpg"), *image.size  # MPO is a JPEG followed by another


def note_unused(data: bytes, note: rgb.Note) -> None:
  """Notes what the header of an image holds and `decode` does not use, e.g. its orientation."""
  rgb.note_unused(_open(data, rgb.MAX_PIXELS), note)


def _open(data: bytes, max_pixels: int) -> Image.Image:
  """Opens an image without decoding its pixels."""
  if not data:
    raise BadImageError("0 bytes")
  try:
    image = Image.open(io.BytesIO(data), formats=list(_FORMATS))
  except Image.UnidentifiedImageError as error:
    raise BadImageError(f"not an image of a known format ({', '.join(_FORMATS)}), or truncated "
                        "in its header") from error
  except Exception as error:  # PIL's plugins raise many kinds on hostile bytes
    raise BadImageError(f"{type(error).__name__}: {error}") from error
  rgb.check_size(image, max_pixels)
  return image


def fit(
    image: Image.Image, size: int | rectangles.Size, crop: str, rng: np.random.Generator | None
) -> Image.Image:
  """Resizes and crops an image to a square or a rectangle.

  Args:
    image: RGB.
    size: pixels per side, or (height, width).
    crop: "random" and "center" resize the image to cover `size`, then crop; "stretch" resizes both
      edges. All bicubic with antialias.
    rng: of a random crop.

  Raises:
    ValueError: for another crop.
  """
  height, width = rectangles.both_sides(size)
  if crop == "stretch":
    return _resize(image, width, height)
  if crop not in CROPS:
    raise ValueError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
  # torchvision's rule: the longer edge is rounded down to an integer.
  if image.width * height <= image.height * width:
    covered = width, int(width * image.height / image.width)
  else:
    covered = int(height * image.width / image.height), height
  spare_x, spare_y = covered[0] - width, covered[1] - height
  if crop == "center":
    left, top = round(spare_x / 2.0), round(spare_y / 2.0)
  else:
    left, top = int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1))
  return _resize_and_crop(image, *covered, left, top, (width, height))


def _resize_and_crop(
    image: Image.Image, width: int, height: int, left: int, top: int, size: tuple[int, int]
) -> Image.Image:
  """Returns a part (`size`: width, height) of `_resize(image, width, height)`, bit-equal, at less cost.

  The second pass resizes each column by itself, so columns outside it are cropped before it.
  The first pass resizes each row by itself, so rows that it does not depend on stay black.
  (PIL's `box` argument would save more, but it is float32 and moves the filter's centres.)
  """
  cut_width, cut_height = size
  if image.width != width:
    ratio = image.height / height
    reach = _SUPPORT * max(ratio, 1.0) + 2
    first = max(0, int((top + 0.5) * ratio - reach))
    last = min(image.height, int((top + cut_height - 0.5) * ratio + reach) + 1)
    if last - first < 0.9 * image.height:  # else the copies cost as much as they save
      rows = image.crop((0, first, image.width, last))
      rows = rows.resize((width, last - first), Image.Resampling.BICUBIC)
      rows = rows.crop((left, 0, left + cut_width, last - first))
      part = Image.new("RGB", (cut_width, image.height))
      part.paste(rows, (0, first))
      image = part
    else:
      image = image.resize((width, image.height), Image.Resampling.BICUBIC)
  if image.width != cut_width:
    image = image.crop((left, 0, left + cut_width, image.height))
  if image.height != height:
    image = image.resize((cut_width, height), Image.Resampling.BICUBIC)
  return image.crop((0, top, cut_width, top + cut_height))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
  """Resizes rows first, then columns; bicubic with antialias.

  The order is fixed because PIL rounds to 8 bits in between and newer releases choose the order by cost:
  results would differ from the official ones by up to two levels of 255.
  """
  if image.width != width:
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
  if image.height != height:
    image = image.resize((width, height), Image.Resampling.BICUBIC)
  return image


def prepare(
    data: bytes, *, size: int | rectangles.Size, crop: str, flip: bool, max_pixels: int,
    rng: np.random.Generator | None, note: rgb.Note = rgb.count
) -> np.ndarray:
  """Decodes, resizes, crops and flips an image: a pure function of its arguments.

  Args:
    data: a file's bytes.
    size: pixels per side of the result, or (height, width).
    crop: see `fit`.
    flip: mirror left and right with probability 0.5.
    max_pixels: see `decode`.
    rng: of crop and flip; may be None if neither is random.
    note: see rgb.to_rgb.

  Returns:
    uint8[height, width, 3].

  Raises:
    BadImageError: see `decode`.
  """
  image = fit(decode(data, max_pixels, note), size, crop, rng)
  if flip and rng.random() < 0.5:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # ten times as fast as in numpy
  return np.asarray(image)
