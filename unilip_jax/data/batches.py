"""Random access to whole batches: which records stand in them, read and made into examples.

A batch of B examples at stream position p holds positions p … p + B − 1 (stream.py). Generation
batches consist of sub-batches of fixed sizes, each with its own sources; every process makes its
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

_ATTEMPTS = 16  # replacements tried for one position
_HORIZON = 2**31  # batches; no run is longer


class DataError(ValueError):
  """Too much of the data is broken, or a process that decodes it died."""


@dataclasses.dataclass(frozen=True)
class Part:
  """A sub-batch.

  Attributes:
    name: in the batch; "" where the batch has no sub-batches.
    make: from record to example (examples.py).
    sources: that it draws from.
    mixture: of the sources.
    size: examples in a global batch.
  """

  name: str
  make: Any
  sources: Sequence[sources.Source]
  mixture: stream.Mixture
  size: int


class TrainBatches:
  """Batches of one process: item i is its share of the global batch first + i."""

  def __init__(
      self, parts: Sequence[Part], *, seed: int, start_position: int, process_index: int,
      process_count: int):
    self._parts, self._seed, self._start = list(parts), seed, start_position
    self._process, self._processes = process_index, process_count
    self._total = sum(part.size for part in parts)

  def __len__(self) -> int:
    return _HORIZON

  def __getitem__(self, index: int) -> dict[str, Any]:
    """One batch; `_bad` holds the broken records that were replaced, as JSON lines."""
    bad: list[str] = []
    batch: dict[str, Any] = {}
    offset = 0
    for part in self._parts:
      made = self._make(part, index, offset, bad)
      offset += part.size
      if part.name:
        batch[part.name] = made
      else:
        batch |= made
    return batch | {"_bad": np.frombuffer("\n".join(bad).encode(), np.uint8)}

  def _make(self, part: Part, index: int, offset: int, bad: list[str]) -> dict[str, np.ndarray]:
    """This process's share of a part of batch `index`, which begins at `offset` in the batch."""
    local = part.size // self._processes
    first = self._process * local
    position = self._start + index * self._total + offset + first
    rank = self._start * part.size // self._total + index * part.size + first
    made = [self._example(part, position + i, rank + i, bad) for i in range(local)]
    return {name: np.stack([m[name] for m in made]) for name in made[0]} | {
        "_mask": np.ones(local, np.bool_),
        "_id": np.arange(position, position + local, dtype=np.int64)}

  def _example(self, part: Part, position: int, rank: int, bad: list[str]) -> dict[str, np.ndarray]:
    """The example at a stream position, which is number `rank` of its part."""
    source, index = part.mixture.locate(rank)
    for attempt in range(_ATTEMPTS + 1):
      if attempt:
        index = part.mixture.replacement(position, source, attempt)
      made, fault = try_make(
          part.sources[source], index, part.make, stream.generator(self._seed, position))
      if made is not None:
        return made
      if fault:
        bad.append(json.dumps(fault | {"position": position}))
    raise DataError(f"stream position {position}: {_ATTEMPTS} replacements in a row are broken or "
                    f"passed over, the last one: {fault or 'passed over'}")


class EvalBatches:
  """Padded batches of one process over a whole set; random access, the same each time."""

  def __init__(
      self, source: sources.Source, count: int, make: Any, *, global_batch: int, process_index: int,
      process_count: int):
    self._source, self.count, self._make = source, count, make
    self._local = global_batch // process_count
    self._offset, self._global = process_index * self._local, global_batch
    self._blank = {
        name: np.zeros(s.shape, s.dtype) for name, s in make.spec(self._local).items()}

  def __len__(self) -> int:
    """Batches, the same on every process."""
    return math.ceil(self.count / self._global)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """One batch: a broken record is logged and masked out, it counts nowhere."""
    first = index * self._global + self._offset
    ids = np.arange(first, first + self._local, dtype=np.int64)
    mask = ids < self.count
    batch = {name: value.copy() for name, value in self._blank.items()}
    for i in np.flatnonzero(mask):
      made, fault = try_make(self._source, int(ids[i]), self._make, None)
      if made is None:
        logging.warning("record left out of the evaluation: %s", fault or f"{ids[i]}, by rule")
        mask[i] = False
      else:
        for name, value in made.items():
          batch[name][i] = value
    return batch | {"_mask": mask, "_id": ids}


def try_make(
    source: sources.Source, index: int, make: Any, rng: np.random.Generator | None
) -> tuple[dict[str, np.ndarray] | None, Mapping[str, Any]]:
  """(example, {}), or (None, what was broken), or (None, {}) for a record that is passed over."""
  try:
    record = source[index]
  except (OSError, decode.BadRecordError) as error:
    return None, {"key": str(index), "shard": "", "why": f"{type(error).__name__}: {error}"}
  try:
    return make(record, rng), {}
  except examples.Skipped:
    return None, {}
  except decode.BadRecordError as error:
    return None, {"key": record.key, "shard": record.shard, "why": str(error)}
