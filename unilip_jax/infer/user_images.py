"""Reads the images that users pass, PIL images, arrays and paths, one or several, as training does; returns
results as PIL images or arrays.
"""

from collections.abc import Iterable
import functools
import os
from typing import Any

from absl import logging
import numpy as np
from PIL import Image

from unilip_jax.common import paths, rectangles
from unilip_jax.data import decode, omissions, rgb

UserImage = Image.Image | np.ndarray | str | os.PathLike
MAX_PIXELS = rgb.MAX_PIXELS
OUTPUTS = ("pil", "array")
_MAX_BYTES = 2**30  # of a file


def as_list(images: Any) -> tuple[list[Any], bool]:
  """Returns (list of images, whether a single one was passed); an array of four axes is a list.

  Raises:
    ValueError: for anything else, or no image.
  """
  if isinstance(images, Image.Image | str | os.PathLike) or (_is_array(images) and images.ndim != 4):
    return [images], True
  if isinstance(images, bytes | bytearray | dict) or not isinstance(images, Iterable):
    raise ValueError(f"images are {_kind(images)}; pass an image, its path, or a list of them")
  result = list(images)
  if not result:
    raise ValueError("no image was given")
  return result, False


def as_array(image: UserImage, name: str = "image") -> np.ndarray:
  """Reads one image as uint8[H, W, 3].

  Args:
    image: of PIL in any mode; the path of a file, local or in a bucket; or uint8[H, W, 3].
    name: for messages; a path is its own name.

  Raises:
    FileNotFoundError: for a path without a file.
    ValueError: for anything that training would not read, and other arrays.
  """
  if isinstance(image, str | os.PathLike):
    return _read(os.fspath(image))
  if isinstance(image, Image.Image):
    try:
      return np.asarray(rgb.to_rgb(image, MAX_PIXELS, _note_of(name)))
    except decode.BadImageError as error:
      raise ValueError(f"{name}: {error}") from error
  if not _is_array(image):
    raise ValueError(f"{name} is {_kind(image)}; pass an image of PIL, a path, or uint8[H, W, 3]")
  try:
    pixels = np.asarray(image)
  except (TypeError, RuntimeError) as error:  # e.g. a tensor of PyTorch on a GPU
    raise ValueError(f"{name} is no array of NumPy: {error}") from error
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
    raise ValueError(f"{name} must be an image of PIL, a path, or uint8[H, W, 3], not "
                     f"{pixels.dtype}{list(pixels.shape)}{_remedy(pixels)}")
  if pixels.size > 3 * MAX_PIXELS:
    raise ValueError(f"{name}: {pixels.shape[1]}×{pixels.shape[0]} pixels exceed {MAX_PIXELS}")
  return pixels


def as_arrays(images: Iterable[UserImage | None]) -> list[np.ndarray | None]:
  """Reads several images; None stays None."""
  return [None if image is None else as_array(image, f"image {i}") for i, image in enumerate(images)]


def as_output(arrays: list[np.ndarray], output: str, *, single: bool) -> Any:
  """Returns results as a call asks for them: an image for a single input, else a list.

  Args:
    arrays: uint8[H, W, 3] each.
    output: one of OUTPUTS; "pil" makes images of PIL, "array" leaves the arrays.
    single: whether a single input was passed.
  """
  images = arrays if output == "array" else [Image.fromarray(array) for array in arrays]
  return images[0] if single else images


def stretched(pixels: np.ndarray, size: int | rectangles.Size) -> np.ndarray:
  """Resizes uint8[H, W, 3] to a square of side `size`, or to (height, width), both edges by themselves."""
  return decode.fit(pixels, size, "stretch")


def resized(pixels: np.ndarray, size: rectangles.Size) -> np.ndarray:
  """Resizes a result uint8[H, W, 3] to (height, width)."""
  return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


def by_shape(arrays: list[np.ndarray], largest: int) -> list[list[int]]:
  """Groups the indices of arrays by their shape; those of more than `largest` values are alone."""
  groups: dict[Any, list[int]] = {}
  for i, array in enumerate(arrays):
    groups.setdefault((array.shape, i if array.size > largest else -1), []).append(i)
  return list(groups.values())


def _read(path: str) -> np.ndarray:
  """Reads a file by the function that training reads it by."""
  scheme = path.partition("://")[0] if "://" in path else "data" if path.startswith("data:") else ""
  if scheme and scheme != "gs":
    raise ValueError(f"{path[:80]} is a URL; download the image and pass its file")
  file = paths.path(path, "image")
  if not file.exists():
    raise FileNotFoundError(f"no image {path}")
  if file.is_dir():
    raise ValueError(
        f"{path} is not a file; it is a folder: pass its images, e.g. {path.rstrip('/')}/*.jpg")
  if not paths.is_file(file):
    raise ValueError(f"{path} is not a file")
  if (size := file.stat().length) > _MAX_BYTES:
    raise ValueError(f"{path}: {size} bytes exceed {_MAX_BYTES}")
  try:
    return decode.pixels(file.read_bytes(), MAX_PIXELS, _note_of(path))
  except decode.BadImageError as error:
    raise ValueError(f"{path}: {omissions.unread_format(path) or error}") from error


def _note_of(name: str) -> rgb.Note:
  return functools.partial(logging.warning, "%s: %s", name)


def _is_array(value: Any) -> bool:
  return hasattr(value, "__array__")  # of NumPy, JAX and other libraries


def _kind(value: Any) -> str:
  return f"{type(value).__name__} {value!r:.40}"


def _remedy(pixels: np.ndarray) -> str:
  """What makes uint8[H, W, 3] of an array, for the message."""
  if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[-1] not in (1, 3, 4):
    return "; move the channels to the last axis"
  if pixels.dtype == np.bool_ or np.issubdtype(pixels.dtype, np.floating):
    return "; scale the values to 0 … 255 and convert them to uint8"
  if pixels.dtype in (np.uint8, np.uint16) and pixels.size:
    return "; PIL.Image.fromarray makes an image of grey values [H, W] and of RGBA"
  return ""
