"""Random access to complete batches: which records a batch holds, read and turned into examples.

A batch of B examples at stream position p holds positions p … p + B − 1 (stream.py). Generation
batches consist of sub-batches of fixed sizes, each with its own sources; every process computes its
contiguous share of each. Pickled into worker processes; nothing here starts an accelerator.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from absl import logging
import numpy as np

from unilip_jax.data import decode, examples, sources, stream

_MAX_REPLACEMENTS = 16  # for one position
_MAX_BATCHES = 2**31  # longer than any run


class DataError(ValueError):
  """Too much of the data is broken, or a process that decodes it died."""


@dataclasses.dataclass(frozen=True)
class Part:
  """A sub-batch.

  Attributes:
    name: in the batch; "" where the batch has no sub-batches.
    make_example: makes an example of a record.
    sources: of its records.
    mixture: of the sources.
    size: examples in a global batch.
  """

  name: str
  make_example: examples.Maker
  sources: Sequence[sources.Source]
  mixture: stream.Mixture
  size: int


class TrainBatches:
  """Batches of one process: item i is its share of the global batch i after `start_position`."""

  def __init__(
      self, parts: Sequence[Part], *, seed: int, start_position: int, process_index: int,
      process_count: int, buckets: Sequence[Sequence[Part]] = (), order: stream.Shares | None = None):
    """Reads nothing yet.

    Args:
      parts: sub-batches.
      seed: of the run.
      start_position: stream position of the first batch.
      process_index: of this process.
      process_count: number of processes.
      buckets: the sub-batches of each aspect-ratio bucket (aspect.py), of the same sizes as `parts`.
      order: of the buckets; None for batches without.
    """
    self._parts, self._seed, self._start = list(parts), seed, start_position
    self._process, self._processes = process_index, process_count
    self._total = sum(part.size for part in parts)
    self._buckets, self._order = buckets, order

  def describe_buckets(self) -> str:
    """Returns the batches and the records of each aspect-ratio bucket, equal on all hosts; "" without."""
    if self._order is None:
      return ""
    records = [[len(source) for part in parts for source in part.sources] for parts in self._buckets]
    return f"batches in 1000 {self._order.counts.tolist()}, records {records}"

  def __len__(self) -> int:
    return _MAX_BATCHES

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns one batch; `_bad` lists the records that were replaced, as JSON lines."""
    bad: list[str] = []
    batch: dict[str, Any] = {}
    offset = 0
    parts, earlier = self._parts, None
    if self._order is not None:
      bucket, earlier = self._order.locate(self._start // self._total + index)
      parts = self._buckets[bucket]
    for part in parts:
      entries = self._make_part(part, index, offset, bad, earlier)
      offset += part.size
      if part.name:
        batch[part.name] = entries
      else:
        batch |= entries
    return batch | {"_bad": np.frombuffer("\n".join(bad).encode(), np.uint8)}

  def _make_part(
      self, part: Part, index: int, offset: int, bad: list[str], earlier: int | None
  ) -> dict[str, np.ndarray]:
    """Returns this process's share of a part of batch `index`; the part begins at `offset` of the batch.

    `earlier` counts the batches of the same bucket before this one, None without buckets.
    """
    local = part.size // self._processes
    first = self._process * local
    position = self._start + index * self._total + offset + first
    rank = first + (self._start * part.size // self._total + index * part.size if earlier is None
                    else earlier * part.size)
    rows = [self._make_example(part, position + i, rank + i, bad) for i in range(local)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {
        "_mask": np.ones(local, np.bool_),
        "_id": np.arange(position, position + local, dtype=np.int64)}

  def _make_example(
      self, part: Part, position: int, rank: int, bad: list[str]) -> dict[str, np.ndarray]:
    """Returns the example at a stream position; it is number `rank` of its part."""
    source, index = part.mixture.locate(rank)
    for attempt in range(_MAX_REPLACEMENTS + 1):
      if attempt:
        index = part.mixture.replacement(position, source, attempt)
      example, fault = try_make(
          part.sources[source], index, part.make_example, stream.generator(self._seed, position))
      if example is not None:
        return example
      bad.append(json.dumps(fault | {"position": position}))
    raise DataError(f"stream position {position}: {_MAX_REPLACEMENTS} replacements in a row are broken "
                    f"or skipped; the last one: {fault}")


class EvalBatches:
  """Padded batches of one process over a complete set; random access, the same each time."""

  def __init__(
      self, source: sources.Source, count: int, make_example: examples.Maker, *,
      global_batch: int, process_index: int, process_count: int):
    self._source, self.count, self._make_example = source, count, make_example
    self._local = global_batch // process_count
    self._offset, self._global = process_index * self._local, global_batch
    self.broken: set[int] = set()  # ids; threads add to it
    self._blank = {
        name: np.zeros(s.shape, s.dtype) for name, s in make_example.spec(self._local).items()}

  def __len__(self) -> int:
    """Returns the number of batches, equal on every process."""
    return math.ceil(self.count / self._global)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns one batch; a broken record is logged and masked out, so that no metric counts it."""
    first = index * self._global + self._offset
    ids = np.arange(first, first + self._local, dtype=np.int64)
    mask = ids < self.count
    batch = {name: value.copy() for name, value in self._blank.items()}
    for i in np.flatnonzero(mask):
      example, fault = try_make(self._source, int(ids[i]), self._make_example, None)
      if example is None:
        logging.warning("record left out of the evaluation: %s", fault)
        mask[i] = False
        if not fault.get("skipped"):
          self.broken.add(int(ids[i]))
      else:
        for name, value in example.items():
          batch[name][i] = value
    return batch | {"_mask": mask, "_id": ids}


def try_make(
    source: sources.Source, index: int, make_example: examples.Maker,
    rng: np.random.Generator | None
) -> tuple[dict[str, np.ndarray] | None, Mapping[str, Any]]:
  """Makes one example.

  Returns:
    (example, {}); (None, {"key", "shard", "why"}) of a broken record, with "skipped": True of one that a
    rule leaves out.
  """
  try:
    record = source[index]
  except (OSError, decode.BadRecordError) as error:
    return None, {"key": str(index), "shard": "", "why": f"{type(error).__name__}: {error}"}
  try:
    return make_example(record, rng), {}
  except examples.Skipped as error:
    return None, {"key": record.key, "shard": record.shard, "why": str(error), "skipped": True}
  except decode.BadRecordError as error:
    return None, {"key": record.key, "shard": record.shard, "why": str(error)}
