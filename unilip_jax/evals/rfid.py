"""rFID and inception score of a set of reconstructions, exact over batches and hosts.

Each host sums its features in float64; the sums of all hosts are added at the end. The originals'
statistics do not depend on the model: they are computed once and stored in the workdir, under a fingerprint
of the weights, the protocol and the set, with a digest of the pixels. Other pixels invalidate them.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from typing import Any
import zipfile
import zlib

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from unilip_jax.common import atomic_io
from unilip_jax.evals import feature_statistics, inception

REFERENCE_FOLDER = "reference_statistics"
_CHUNK = 2**18  # numbers of one exchange between hosts


@dataclasses.dataclass(frozen=True)
class Reference:
  """Holds the statistics of a set's originals.

  Attributes:
    statistics: of their features.
    digest: of their pixels, in any order.
  """

  statistics: feature_statistics.Statistics
  digest: int


class Cache:
  """Stores the reference of one set, in memory and in a folder that all hosts share."""

  def __init__(self, folder: epath.PathLike, name: str, key: Mapping[str, Any]):
    """Args: folder; name of the set; key: JSON-ready, all that the features depend on but the pixels."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    self._path = epath.Path(folder) / REFERENCE_FOLDER / f"{name}-{digest}.npz"
    self._reference: Reference | None = None

  def load(self) -> Reference | None:
    """Returns the stored reference, the same on all hosts; None if a host finds none."""
    if self._reference is None and self._path.exists():
      try:
        with self._path.open("rb") as stream, np.load(stream) as arrays:
          self._reference = Reference(
              feature_statistics.Statistics(int(arrays["count"]), arrays["total"], arrays["outer"]),
              int(arrays["digest"]))
      except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logging.warning("%s is damaged (%s) and is computed again", self._path, error)
    have = sum_over_hosts(np.array([float(self._reference is not None)]))[0]
    return self._reference if have == jax.process_count() else None

  def save(self, reference: Reference) -> None:
    """Keeps a reference; process 0 writes it."""
    self._reference = reference
    if jax.process_index() == 0:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with atomic_io.open_file(self._path) as stream:
        np.savez(stream, count=reference.statistics.count, total=reference.statistics.total,
                 outer=reference.statistics.outer, digest=np.uint64(reference.digest))

  def discard(self) -> None:
    """Forgets the reference; the next `save` replaces the file."""
    self._reference = None
    if jax.process_index() == 0:
      self._path.unlink(missing_ok=True)


class Measure:
  """Accumulates the examples of this host."""

  def __init__(self, extractor: inception.Extractor):
    features = extractor.dims.features
    self._splits = extractor.steps.splits
    zero = feature_statistics.Statistics.of(np.zeros((0, features)))
    self._made, self._real = zero, zero
    self._ids: list[np.ndarray] = []
    self._logits: list[np.ndarray] = []
    self._digest = 0

  def add(self, batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Adds a batch of this host.

    Args:
      batch: image uint8[B, R, R, 3], _mask bool[B], _id int64[B].
      outputs: float32[B, …]: features and logits of reconstructions; reference, features of originals,
        if no stored statistics are used.
    """
    mask = batch["_mask"]
    self._made += feature_statistics.Statistics.of(outputs["features"][mask])
    if "reference" in outputs:
      self._real += feature_statistics.Statistics.of(outputs["reference"][mask])
    self._ids.append(np.where(mask, batch["_id"], -1))
    self._logits.append(outputs["logits"][mask])
    self._digest += sum(_digest(image) for image in batch["image"][mask])

  def finish(self, name: str, reference: Reference | None) -> tuple[dict[str, float], Reference] | None:
    """Adds up the sums of all hosts and computes the scores.

    Args:
      name: of the set, for messages.
      reference: stored statistics of the originals; None if `add` got their features.

    Returns:
      ({"rfid", "inception_score", "inception_score_std"}, the reference); None if the stored reference is
      of other pixels.

    Raises:
      ValueError: for too few examples.
    """
    digest = int(_words(np.uint64(self._digest % 2**64)).sum(0, np.uint64)[0])
    if reference is None:
      reference = Reference(_all(self._real), digest)
    elif reference.digest != digest:
      return None
    made = _all(self._made)
    if made.count < len(made.total):
      logging.warning("%s: rFID of %d images with %d features is too high: their covariance is singular",
                      name, made.count, len(made.total))
    distance = feature_statistics.frechet_distance(*reference.statistics.moments(), *made.moments())
    mean, deviation = feature_statistics.inception_score(self._score_sums())
    return {"rfid": distance, "inception_score": mean, "inception_score_std": deviation}, reference

  def _score_sums(self) -> np.ndarray:
    """Sums of the inception score: images of all hosts are ordered by id, then shuffled and cut."""
    own = np.concatenate(self._ids)
    ids = np.sort(_words(own).reshape(-1))
    ids = ids[ids >= 0]
    split = feature_statistics.score_split(len(ids), self._splits)
    own = own[own >= 0]
    return sum_over_hosts(feature_statistics.score_sums(
        np.concatenate(self._logits), split[np.searchsorted(ids, own)], self._splits))


def sum_over_hosts(array: np.ndarray) -> np.ndarray:
  """Adds up float64 arrays of all hosts, bit-equal on each."""
  if jax.process_count() == 1:
    return array
  flat = np.ascontiguousarray(array, np.float64).reshape(-1)
  chunks = [_words(flat[i:i + _CHUNK]).sum(0) for i in range(0, len(flat), _CHUNK)]
  return np.concatenate(chunks).reshape(array.shape)


def _words(array: np.ndarray) -> np.ndarray:
  """Gathers equal shapes of 64-bit numbers from all hosts: [hosts, N]; JAX would round them to 32 bits."""
  array = np.atleast_1d(array)
  if jax.process_count() == 1:
    return array[None]
  gathered = multihost_utils.process_allgather(np.ascontiguousarray(array).view(np.uint32))
  return np.ascontiguousarray(gathered).view(array.dtype)


def _all(statistics: feature_statistics.Statistics) -> feature_statistics.Statistics:
  return feature_statistics.Statistics(
      int(sum_over_hosts(np.array([float(statistics.count)]))[0]), sum_over_hosts(statistics.total),
      sum_over_hosts(statistics.outer))


def _digest(image: np.ndarray) -> int:
  return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest(), "little")
