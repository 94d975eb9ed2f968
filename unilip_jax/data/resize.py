"""Resizes RGB images with PIL's bicubic filter with antialias: its pixels bit for bit, in less time.

resize.c has PIL's arithmetic in an order that vector instructions can follow. The machine's C compiler
compiles it when it is first used, in about a second; the result is kept in the user's cache folder. Where
that is impossible, PIL resizes: the pixels are the same.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile

from absl import logging
import numpy as np
from PIL import Image

from unilip_jax.data import scratch

# Read with this module, whose call fits it, not when it is compiled: it may be another version by then.
_SOURCE = pathlib.Path(__file__).with_suffix(".c").read_bytes()
# Without contraction: PIL's weights come from separate multiplications and additions.
_FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c", "-", "-lm")
_SECONDS = 120  # of the compiler
_LONGEST = 2**16  # pixels per side; the memory in use grows with them, 192 bytes each
_SUPPORT = 2.0  # of the bicubic filter, in source pixels where the image is enlarged


def part(
    pixels: np.ndarray, size: tuple[int, int], corner: tuple[int, int], cut: tuple[int, int],
    mirror: bool = False) -> np.ndarray:
  """Returns a part of a resized image; rows are resized first, then columns, as in PIL.

  Args:
    pixels: uint8[H, W, 3].
    size: (height, width) of the resized image.
    corner: (top, left) of the part.
    cut: (height, width) of the part.
    mirror: whether its left and right are exchanged.

  Returns:
    uint8[*cut, 3].

  Raises:
    ValueError: for other pixels, and a part that is not inside the resized image.
    MemoryError: if there is not enough memory.
  """
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
    raise ValueError(f"pixels must be uint8[H, W, 3], not {pixels.dtype}{list(pixels.shape)}")
  if any(c < 1 or begin < 0 or begin + c > s for s, begin, c in zip(size, corner, cut)):
    raise ValueError(f"a part of {cut} at {corner} is not inside an image of {size}")
  library = _library() if max(pixels.shape) < _LONGEST and max(size) < _LONGEST else None
  if library is None:
    return part_by_pil(Image.fromarray(pixels), size, corner, cut, mirror)
  pixels, out = np.ascontiguousarray(pixels), np.empty((*cut, 3), np.uint8)
  height, width, _ = pixels.shape
  memory = scratch.block("resize", 3 * (64 * (width + cut[1]) + height * cut[1]))
  if library.resize_part(pixels.ctypes.data, height, width, *size, *corner, *cut, int(mirror),
                         memory.ctypes.data, out.ctypes.data):
    raise MemoryError(f"resizing an image of {list(pixels.shape)} to {size}")
  return out


@functools.cache
def _library() -> ctypes.CDLL | None:
  """Returns the compiled resize.c; None, with a line in the log, where PIL is to be used."""
  if platform.machine() not in ("x86_64", "AMD64"):
    return None  # PIL's weights may differ there in the last bit: compilers join operations
  try:
    library = ctypes.CDLL(os.fspath(_compiled()))
  except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
    detail = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
    logging.warning("PIL resizes images, with the same pixels in several times the time, since resize.c "
                    "cannot be compiled: %s. Install a C compiler, e.g. gcc, or name it in CC",
                    detail or error)
    return None
  library.resize_part.argtypes = [
      ctypes.c_void_p, *[ctypes.c_int] * 9, ctypes.c_void_p, ctypes.c_void_p]
  return library


def _compiled() -> pathlib.Path:
  """Returns the file of the compiled resize.c, which is made when it is absent.

  Raises:
    OSError: without a compiler or a folder to write to.
    subprocess.SubprocessError: if the compiler fails.
  """
  compiler = shlex.split(os.environ.get("CC", "")) or list(filter(shutil.which, ("cc", "gcc", "clang")))[:1]
  if not compiler:
    raise FileNotFoundError("no C compiler")
  mark = hashlib.sha256(repr((_SOURCE, compiler, _FLAGS)).encode()).hexdigest()[:16]
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  file = cache / "unilip_jax" / f"resize-{platform.system()}-{mark}.so"
  if file.exists() and _is_own(file):
    return file
  file.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # other processes may do the same
    made = pathlib.Path(folder) / file.name
    subprocess.run([*compiler, "-o", os.fspath(made), *_FLAGS], input=_SOURCE, check=True,
                   capture_output=True, timeout=_SECONDS)
    made.chmod(0o700)
    made.replace(file)
  return file


def _is_own(file: pathlib.Path) -> bool:
  """Tells whether only this user can have written a file: loading it executes it."""
  about = file.stat()
  if about.st_uid == os.geteuid() and not about.st_mode & 0o022:
    return True
  logging.warning("%s belongs to somebody else, or others can write to it: it is made again", file)
  return False


def part_by_pil(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], cut: tuple[int, int], mirror: bool
) -> np.ndarray:
  """Does the work of `part` by PIL, with an RGB image.

  PIL resizes rows, then columns in two calls: it rounds to 8 bits in between, and newer releases choose the
  order by cost, with results that differ from the official ones by up to two levels of 255.

  The second pass resizes each column by itself, so columns outside of the part are cropped before it. The
  first pass resizes each row by itself, so rows that the part does not depend on stay black. (PIL's `box`
  argument would save more, but it is float32 and moves the filter's centres.)
  """
  (height, width), (top, left), (cut_height, cut_width) = size, corner, cut
  if image.width != width:
    ratio = image.height / height
    reach = _SUPPORT * max(ratio, 1.0) + 2
    first = max(0, int((top + 0.5) * ratio - reach))
    last = min(image.height, int((top + cut_height - 0.5) * ratio + reach) + 1)
    if last - first < 0.9 * image.height:  # else the copies cost as much as they save
      rows = image.crop((0, first, image.width, last))
      rows = rows.resize((width, last - first), Image.Resampling.BICUBIC)
      rows = rows.crop((left, 0, left + cut_width, last - first))
      image = Image.new("RGB", (cut_width, image.height))
      image.paste(rows, (0, first))
    else:
      image = image.resize((width, image.height), Image.Resampling.BICUBIC)
  if image.width != cut_width:
    image = image.crop((left, 0, left + cut_width, image.height))
  if image.height != height:
    image = image.resize((cut_width, height), Image.Resampling.BICUBIC)
  image = image.crop((0, top, cut_width, top + cut_height))
  if mirror:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # ten times as fast as in numpy
  return np.asarray(image)
