"""Makes the reconstructions of a benchmark's images; a rerun makes only those that are absent."""

from collections.abc import Callable, Iterable, Sequence

from etils import epath
import numpy as np
from PIL import Image

from unilip_jax.common import atomic_io, png
from unilip_jax.data import decode, rgb
from unilip_jax.infer import loading
from unilip_jax.infer import model as model_lib
from unilip_jax.scores import base
from unilip_jax.weights import fingerprints


class Reconstructor:
  """Encodes and decodes images with a checkpoint, a tokenizer alone too.

  Attributes:
    fingerprint: of the weights, as they were read.
    image_size: pixels per side of the model's square.
    batch_size: images of one size that run at once.
  """

  def __init__(self, path: str, dtype: str, batch_size: int, *, int8: bool = False):
    """Reads a checkpoint; arguments and errors as of `UniLIP.load`."""
    loaded = loading.read(path, dtype)
    self.fingerprint, self.batch_size = fingerprints.fingerprint(loaded.params), batch_size
    self._model = model_lib.UniLIP(
        loaded.params, loaded.tokenizer_dims, dtype=dtype, batch_size=batch_size, int8=int8)
    self.image_size = self._model.image_size

  def __call__(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
    """Returns uint8[H, W, 3] of each image, at its own size."""
    return self._model.reconstruct(list(images), output="array")


def make_reconstructions(
    benchmark: base.Benchmark, items: Sequence[base.Item], folder: epath.Path,
    reconstruct: Reconstructor, *, progress: Callable[[Iterable], Iterable] = iter) -> int:
  """Writes the reconstructions that are absent; returns their number.

  Args:
    benchmark: of kind "reconstruction".
    items: of this process, each with one image.
    folder: with the record, see make_record.open_folder.
    reconstruct: see Reconstructor.
    progress: wraps the batches.
  """
  absent = [item for item in items if not (folder / benchmark.output_path(item, 0)).is_file()]
  size = reconstruct.batch_size
  for part in progress([absent[i:i + size] for i in range(0, len(absent), size)]):
    originals = [decode.decode(base.image_bytes(item.images[0]), rgb.MAX_PIXELS) for item in part]
    for item, pixels in zip(part, reconstruct(originals)):
      atomic_io.write(folder / benchmark.output_path(item, 0), png.encode(pixels))
  return len(absent)
