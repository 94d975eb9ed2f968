"""Sizes of a source's images, read from their headers in one pass and cached in the index folder.

The name of the cached file holds a hash of a sample of the images and one of the sizes and times of the
source's files (data/latents.py), so that sizes never serve other data.
"""

from concurrent import futures
import io

from absl import logging
from etils import epath
import numpy as np

from unilip_jax.common import atomic_io, paths, progress_bar
from unilip_jax.data import decode, latents, sources
from unilip_jax.multihost import preemption

_THREADS = 8
_AT_ONCE = 4096  # records between two looks at whether the run is to stop


def read(images: sources.Source, index_dir: epath.PathLike, max_pixels: int) -> np.ndarray:
  """Returns int32[N, 2], (height, width) of each image; (0, 0) of one that cannot be opened.

  Args:
    images: records with the part `image`.
    index_dir: cache folder; hosts may share it.
    max_pixels: larger images count as ones that cannot be opened.
  """
  name = f"sizes-{latents.mark(images)}-{latents.times(images) or 'unknown'}-{max_pixels}.npy"
  file = paths.path(index_dir, "data.index_dir") / name
  if file.exists():
    if (stored := _stored(file.read_bytes(), len(images))) is not None:
      return stored
    logging.warning("%s is damaged and written again", file)
  logging.info("reading the headers of %d images for their sizes; they are kept in %s", len(images), file)
  sizes = np.zeros((len(images), 2), np.int32)

  def of(index: int) -> tuple[int, int]:
    try:
      _, width, height = decode.describe(images[index].parts["image"], max_pixels)
    except (OSError, decode.BadRecordError):
      return 0, 0
    return height, width

  with (futures.ThreadPoolExecutor(_THREADS) as pool,
        progress_bar.bar(total=len(images), unit=" images") as bar):
    for first in range(0, len(images), _AT_ONCE):
      preemption.preemption_point()
      part = range(first, min(first + _AT_ONCE, len(images)))
      sizes[part.start:part.stop] = list(pool.map(of, part))
      bar.update(len(part))
  content = io.BytesIO()
  np.save(content, sizes, allow_pickle=False)
  file.parent.mkdir(parents=True, exist_ok=True)
  atomic_io.write(file, content.getvalue())
  return sizes


def _stored(content: bytes, count: int) -> np.ndarray | None:
  """Returns the sizes in a cached file; None if it is damaged."""
  try:
    sizes = np.load(io.BytesIO(content), allow_pickle=False)
  except (ValueError, EOFError, OSError):  # what NumPy raises on other content
    return None
  is_sound = isinstance(sizes, np.ndarray) and sizes.shape == (count, 2) and sizes.dtype == np.int32
  return sizes if is_sound else None
