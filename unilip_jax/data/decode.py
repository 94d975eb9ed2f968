"""Decodes images to RGB, resizes (resize.py) and crops them on the host: one way for all that read images.

All pixels are those of PIL: its conversion to RGB (rgb.py) and its bicubic filter with antialias.
"""

from collections.abc import Callable
import functools
import io
import math
import warnings

import numpy as np
from PIL import Image

from unilip_jax.common import rectangles
from unilip_jax.data import resize, rgb, scratch
from unilip_jax.data.rgb import BadImageError, BadRecordError  # noqa: F401 names of this module too

CROPS = ("random", "center", "stretch")
# Formats that are opened, those of the suffixes in sources.py. Others are refused: decoders of some
# (PostScript) start programs.
_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tiff",
            "PPM": "ppm"}
# Reductions of a JPEG while it is decoded. Those between 1 and 4 except 2 take longer than 2; 8 saves a
# tenth of the time of 4 and loses 10 dB more.
_REDUCTIONS = (4, 2)

# max_pixels is the limit here. Set once for the process: catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def pixels(data: bytes, max_pixels: int, note: rgb.Note = rgb.count) -> np.ndarray:
  """Decodes an image completely.

  Args:
    data: a file's bytes.
    max_pixels: larger images are refused before anything is decoded.
    note: see rgb.to_rgb.

  Returns:
    uint8[H, W, 3].

  Raises:
    BadImageError: for empty, broken, truncated or too large images, and values whose range is unknown.
  """
  return _pixels(_open(data, max_pixels), data, max_pixels, note)


def decode(data: bytes, max_pixels: int, note: rgb.Note = rgb.count) -> Image.Image:
  """Returns `pixels` as an image of PIL, with what its `info` holds."""
  return rgb.to_rgb(_open(data, max_pixels), max_pixels, note)


def describe(data: bytes, max_pixels: int) -> tuple[str, int, int]:
  """Returns (suffix of the format, width, height) from the header of an image; otherwise as `pixels`."""
  image = _open(data, max_pixels)
  return _FORMATS.get(image.format, "jpg"), *image.size  # MPO is a JPEG followed by another


def note_unused(data: bytes, note: rgb.Note) -> None:
  """Notes what the header of an image holds and `pixels` does not use, e.g. its orientation."""
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


def _pixels(
    image: Image.Image, data: bytes, max_pixels: int, note: rgb.Note, reduction: int = 1,
    memory: Callable[[int], np.ndarray] = lambda size: np.empty(size, np.uint8)) -> np.ndarray:
  """Decodes an opened image.

  JPEGs go to simplejpeg: the same libjpeg-turbo as PIL's with the same settings, without a copy into PIL's
  layout of four bytes a pixel. What it refuses, even by a warning, PIL judges, and so all other images.

  Args:
    image: of `data`.
    data: see `pixels`.
    max_pixels: see `pixels`.
    note: see `pixels`.
    reduction: of the sides of a JPEG, rounded up; other images keep their size.
    memory: returns uint8[size], which the result may be in.
  """
  if image.format == "JPEG" and image.mode == "RGB":
    import simplejpeg  # benchmarks of networks run where it is absent

    height, width = (math.ceil(edge / reduction) for edge in image.size[::-1])
    least = dict(min_height=height, min_width=width) if reduction > 1 else {}
    try:
      decoded = simplejpeg.decode_jpeg(  # the buffer bounds what a damaged header can ask for
          data, "RGB", buffer=memory(3 * height * width), **least)
    except ValueError:
      decoded = None
    if decoded is not None and decoded.shape == (height, width, 3):
      rgb.note_unused(image, note)
      return decoded
  return np.asarray(rgb.to_rgb(image, max_pixels, note))


def fit(
    image: np.ndarray, size: int | rectangles.Size, crop: str, rng: np.random.Generator | None = None
) -> np.ndarray:
  """Resizes and crops an image to a square or a rectangle.

  Args:
    image: uint8[H, W, 3].
    size: pixels per side, or (height, width).
    crop: "random" and "center" resize the image to cover `size`, then crop; "stretch" resizes both
      edges. All bicubic with antialias.
    rng: of a random crop.

  Returns:
    uint8[*size, 3].

  Raises:
    ValueError: for another crop.
  """
  cut = rectangles.both_sides(size)
  covered = _covered(image.shape[:2], cut, crop)
  return resize.part(image, covered, _corner(covered, cut, crop, rng), cut)


def _covered(image: rectangles.Size, cut: rectangles.Size, crop: str) -> rectangles.Size:
  """Returns the (height, width) that an image of (height, width) is resized to before it is cropped."""
  if crop not in CROPS:
    raise ValueError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
  if crop == "stretch":
    return cut
  # torchvision's rule: the longer edge is rounded down to an integer.
  if image[1] * cut[0] <= image[0] * cut[1]:
    return int(cut[1] * image[0] / image[1]), cut[1]
  return cut[0], int(cut[0] * image[1] / image[0])


def _reduction(image: rectangles.Size, covered: rectangles.Size) -> int:
  """Returns the largest reduction of an image that leaves at least `covered`."""
  fits = lambda r: all(math.ceil(edge / r) >= least for edge, least in zip(image, covered))
  return next(filter(fits, _REDUCTIONS), 1)


def _corner(
    covered: rectangles.Size, cut: rectangles.Size, crop: str, rng: np.random.Generator | None
) -> tuple[int, int]:
  """Returns (top, left) of a crop."""
  spare_y, spare_x = covered[0] - cut[0], covered[1] - cut[1]
  if crop == "random":
    left, top = int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1))
    return top, left
  return round(spare_y / 2.0), round(spare_x / 2.0)


def prepare(
    data: bytes, *, size: int | rectangles.Size, crop: str, flip: bool, max_pixels: int,
    rng: np.random.Generator | None, note: rgb.Note = rgb.count, scaled: bool = False
) -> np.ndarray:
  """Decodes, resizes, crops and flips an image: a pure function of its arguments.

  Args:
    data: a file's bytes.
    size: pixels per side of the result, or (height, width).
    crop: see `fit`.
    flip: mirror left and right with probability 0.5.
    max_pixels: see `pixels`.
    rng: of crop and flip; may be None if neither is random.
    note: see rgb.to_rgb.
    scaled: decode JPEGs of at least two or four times the size that they are resized to at a half or a
      quarter of their sides, which changes pixels (docs/data.md has by how much).

  Returns:
    uint8[height, width, 3].

  Raises:
    BadImageError: see `pixels`.
  """
  image, cut = _open(data, max_pixels), rectangles.both_sides(size)
  covered = _covered(image.size[::-1], cut, crop)
  reduction = _reduction(image.size[::-1], covered) if scaled else 1
  decoded = _pixels(image, data, max_pixels, note, reduction, functools.partial(scratch.block, "decoded"))
  corner = _corner(covered, cut, crop, rng)
  return resize.part(decoded, covered, corner, cut, mirror=bool(flip and rng.random() < 0.5))
