"""Aspect-ratio buckets of the training stream: batches of one image size each (data.buckets).

Every image belongs to the bucket whose ratio of sides is nearest to its own. Which bucket a batch has is a
pure function of the seed and the batch's number, as often as its images are read without buckets; so is
which of the bucket's records it holds. A run therefore resumes at any batch, and all hosts have batches of
one size at the same step.
"""

from collections.abc import Sequence
import dataclasses

from absl import logging
import ml_collections
import numpy as np

from unilip_jax.common import rectangles
from unilip_jax.data import batches, examples, image_sizes, latents, omissions, sources, stream
from unilip_jax.models import presets

_ORDER, _RECORDS = 5, 6  # purposes of hashes of the seed, apart from those of stream.py and pipeline.py


class Subset(sources.Source):
  """Some records of another source."""

  def __init__(self, source: sources.Source, indices: np.ndarray):
    """Keeps the source and the indices of the records, an integer array."""
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> sources.Record:
    return self._source[int(self._indices[index])]

  def left_out(self) -> omissions.Omissions:
    return self._source.left_out()

  def stamps(self) -> Sequence[str]:
    return self._source.stamps()


def assign(sizes: np.ndarray, buckets: Sequence[rectangles.Size]) -> np.ndarray:
  """Returns uint16[N], the bucket of each image of int32[N, 2] (height, width).

  An image without a size goes to the bucket of squares, where decoding it counts it as broken.
  """
  known, inverse = np.unique(sizes, axis=0, return_inverse=True)
  chosen = [rectangles.nearest((h, w) if h and w else (1, 1), buckets) for h, w in known.tolist()]
  return np.asarray(chosen, np.uint16)[inverse.reshape(-1)]


def split(
    config: ml_collections.ConfigDict, parts: Sequence[batches.Part], weights: Sequence[Sequence[float]],
    index_dir: str
) -> tuple[list[list[batches.Part]], stream.Shares]:
  """Divides the sub-batches' records among config.data.buckets.

  Args:
    config: uses data.buckets, data.max_pixels, seed and size.
    parts: sub-batches over all records.
    weights: of the sources of each sub-batch.
    index_dir: cache folder of the images' sizes.

  Returns:
    (sub-batches of each bucket; order of the buckets).

  Raises:
    ValueError: if no bucket has records for every sub-batch.
  """
  sizes = [tuple(size) for size in config.data.buckets]
  tokens = presets.get(config.size).tokenizer.image_tokens
  examples = [part.name or config.data.example for part in parts]
  chosen = [[assign(image_sizes.read(latents.images_of(source, example), index_dir,
                                     config.data.max_pixels), sizes) for source in part.sources]
            for part, example in zip(parts, examples)]
  divided, shares = [], []
  total = sum(part.size for part in parts)
  for number, size in enumerate(sizes):
    of_bucket, share = [], 0.0
    for i, part in enumerate(parts):
      members = [np.flatnonzero(bucket == number).astype(np.uint32) for bucket in chosen[i]]
      # How often the sources' images of this bucket are read, as without buckets.
      own = [weight * len(at) / len(bucket)
             for weight, at, bucket in zip(weights[i], members, chosen[i])]
      if not sum(own):
        break
      share += sum(own) / sum(weights[i]) * part.size / total
      seed = stream.hashed(config.seed, _RECORDS, i, number)
      of_bucket.append(dataclasses.replace(
          part, make_example=_of_size(part.make_example, size, tokens(size)),
          sources=[Subset(source, at) for source, at in zip(part.sources, members)],
          mixture=stream.Mixture([len(at) for at in members], own, seed)))
    divided.append(of_bucket)
    shares.append(share if len(of_bucket) == len(parts) else 0.0)
  if not sum(shares):
    raise ValueError("no bucket of data.buckets has images for "
                     + " and ".join(part.name or "the batch" for part in parts))
  images = sum(np.bincount(bucket, minlength=len(sizes)) for of_part in chosen for bucket in of_part)
  order = stream.Shares(shares, stream.hashed(config.seed, _ORDER))
  _log(sizes, images, order.counts)
  return divided, order


def _log(sizes: Sequence[rectangles.Size], images: np.ndarray, counts: np.ndarray) -> None:
  """Logs the images of each bucket, its batches in 1000, and the images that are never read."""
  for size, of_bucket, count in zip(sizes, images, counts):
    logging.info("data.buckets %dx%d: %d images, %.1f %% of the batches", *size, of_bucket, count / 10)
  if lost := int(images[counts == 0].sum()):
    logging.warning(
        "data.buckets: %d images are never read: their buckets are too rare, or lack images for a "
        "sub-batch; leave those buckets out of the list, so that the nearest others take the images", lost)


def _of_size(make_example, size: rectangles.Size, tokens: int):
  """Returns a maker of examples of another size."""
  more = {"image_tokens": tokens} if isinstance(make_example, examples.Edit) else {}
  return dataclasses.replace(make_example, size=size, **more)
