"""Batches for training and evaluation, and their way to the devices.

Training: batch s of a run holds the stream positions s·B … s·B + B − 1 (stream.py); each process decodes its
contiguous share. grain runs the decoding in threads or worker processes and keeps the order, so the
batches are the same for any number of either.
Evaluation: every record once, the last batch padded, `_mask` False on the padding.
The only file that touches grain.
"""  # noqa: E501

import collections
from collections.abc import Iterator, Mapping
import json
import math
import os
from typing import Any

from absl import flags, logging
import grain
import jax
import ml_collections
import numpy as np

from unilip_jax import batch as batch_lib
from unilip_jax.data import decode, sources, stream

_ATTEMPTS = 16  # replacements tried for one position
_MIN_RECORDS = 1000  # the broken fraction is judged on at least this many records
_THREADS = 4  # decoding at once in a process; PIL lets go of the interpreter lock
_HORIZON = 2**31  # batches; no run is longer
_PROTOCOL_SIZE = {"224": 224, "448": 448, "pad256": 256}


class DataError(ValueError):
  """Too much of the data is broken, or a process that decodes it died."""


class TrainBatches:
  """Random access to the batches of one process: item i is its share of batch first + i.

  Pickled into worker processes; decodes with PIL and numpy only.
  """

  def __init__(
      self, record_sources: list[sources.Source], mixture: stream.Mixture, *, seed: int, size: int,
      crop: str, flip: bool, max_pixels: int, start_position: int, global_batch: int,
      process_index: int, process_count: int):
    self._sources, self._mixture, self._seed = record_sources, mixture, seed
    self._prepare = dict(size=size, crop=crop, flip=flip, max_pixels=max_pixels)
    self._local = global_batch // process_count
    self._first = start_position + process_index * self._local
    self._stride, self._size = global_batch, size

  def __len__(self) -> int:
    return _HORIZON

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """One batch; `_bad` holds the broken records that were replaced, as JSON lines."""
    first = self._first + index * self._stride
    images = np.empty((self._local, self._size, self._size, 3), np.uint8)
    bad: list[str] = []
    for i in range(self._local):
      images[i] = self._read(first + i, bad)
    return {
        "image": images, "_mask": np.ones(self._local, np.bool_),
        "_id": np.arange(first, first + self._local, dtype=np.int64),
        "_bad": np.frombuffer("\n".join(bad).encode(), np.uint8)}

  def _read(self, position: int, bad: list[str]) -> np.ndarray:
    source, index = self._mixture.locate(position)
    for attempt in range(_ATTEMPTS + 1):
      if attempt:
        index = self._mixture.replacement(position, source, attempt)
      image, fault = _try_read(
          self._sources[source], index, self._prepare, stream.generator(self._seed, position))
      if image is not None:
        return image
      bad.append(json.dumps(fault | {"position": position}))
    raise DataError(f"stream position {position}: {_ATTEMPTS} replacements in a row are broken, the "
                    f"last one {fault}")


def _try_read(source, index: int, prepare: Mapping[str, Any], rng) -> tuple[Any, dict[str, Any]]:
  """(image, {}) or (None, what was broken)."""
  try:
    record = source[index]
  except OSError as error:
    return None, {"key": str(index), "shard": "", "why": f"{type(error).__name__}: {error}"}
  try:
    return decode.prepare(record.image, rng=rng, **prepare), {}
  except decode.BadImageError as error:
    return None, {"key": record.key, "shard": record.shard, "why": str(error)}


class BadRecords:
  """Counts broken records and stops the run when they are too many.

  Attributes:
    count: broken records met so far.
    examples: the newest few.
  """

  def __init__(self, max_fraction: float):
    self._max_fraction = max_fraction
    self.count, self._read = 0, 0
    self.examples: collections.deque = collections.deque(maxlen=8)

  def note(self, faults: np.ndarray, records: int) -> None:
    """Logs what a batch reports.

    Raises:
      DataError: beyond the configured fraction.
    """
    self._read += records
    for line in faults.tobytes().decode().splitlines():
      fault = json.loads(line)
      self.count += 1
      self.examples.append(fault)
      logging.warning("broken record %(key)s in %(shard)s: %(why)s", fault)
    if self.count > self._max_fraction * max(self._read, _MIN_RECORDS):
      raise DataError(
          f"{self.count} of {self._read} records are broken, more than data.max_bad_fraction="
          f"{self._max_fraction}; the newest: {list(self.examples)}")


class TrainStream:
  """Iterator over this process's batches.

  Attributes:
    position: stream position of the next batch to be handed out; all that a checkpoint needs.
    bad: broken records met.
  """

  def __init__(self, batches: TrainBatches, start_position: int, config):
    self.position, self._global = start_position, config.batch_size
    self.bad = BadRecords(config.data.max_bad_fraction)
    dataset = grain.MapDataset.source(batches)
    workers = config.data.workers
    # A worker decodes on its share of the cores; each thread makes one batch at a time, and each
    # batch ahead costs memory, so no more than one waits.
    threads = max(1, min(_THREADS, (os.cpu_count() or 1) // max(1, workers)))
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    self._dataset = dataset.to_iter_dataset(read)
    if workers:
      if not flags.FLAGS.is_parsed():  # grain's workers read flags of their own
        flags.FLAGS.mark_as_parsed()
      self._dataset = self._dataset.mp_prefetch(
          grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    self._iterator: Any = iter(self._dataset)

  def __iter__(self) -> "TrainStream":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      batch = dict(next(self._iterator))
    except RuntimeError as error:  # grain looks after its workers every second
      if "terminated unexpectedly" not in str(error):
        raise
      raise DataError(
          f"a decoding process of the input pipeline died ({error}). Exit code -9 is mostly the "
          "kernel's for want of memory: lower data.workers or the batch size, then start again; the "
          "run continues from its checkpoint") from error
    self.position += self._global
    self.bad.note(batch.pop("_bad"), len(batch["_id"]))
    return batch

  def close(self) -> None:
    """Ends worker processes and threads."""
    close = getattr(self._iterator, "close", None)
    if close is not None:
      close()
    self._iterator = None


def _index_dir(config, workdir: str) -> str:
  return config.data.index_dir or os.path.join(workdir, "index")


def train_stream(
    config: ml_collections.ConfigDict, *, start_position: int, process_index: int,
    process_count: int, workdir: str
) -> TrainStream:
  """The training data from a stream position on.

  Args:
    config: uses data.*, batch_size, image_size and seed.
    start_position: multiple of what was consumed, as a checkpoint holds it.
    process_index: of this process.
    process_count: number of processes; must divide batch_size.
    workdir: of the run.

  Raises:
    ValueError: for settings that do not fit.
    FileNotFoundError: if a source is absent.
  """
  if config.batch_size % process_count:
    raise ValueError(
        f"batch_size={config.batch_size} does not divide over {process_count} processes")
  if config.data.crop not in decode.CROPS:
    raise ValueError(f"unknown data.crop {config.data.crop!r}; choose one of {decode.CROPS}")
  rows = config.data.train
  opened = [
      sources.make(kind, path, workdir=workdir, index_dir=_index_dir(config, workdir))
      for kind, path, _ in rows]
  for (kind, path, weight), source in zip(rows, opened):
    logging.info("training data: %s %s, %d images, weight %g", kind, path, len(source), weight)
  mixture = stream.Mixture([len(s) for s in opened], [w for *_, w in rows], config.seed)
  batches = TrainBatches(
      opened, mixture, seed=config.seed, size=config.image_size, crop=config.data.crop,
      flip=config.data.flip, max_pixels=config.data.max_pixels, start_position=start_position,
      global_batch=config.batch_size, process_index=process_index, process_count=process_count)
  return TrainStream(batches, start_position, config)


class EvalBatches:
  """Padded batches of one process over a whole set; random access, the same each time."""

  def __init__(
      self, source: sources.Source, count: int, *, size: int, max_pixels: int, global_batch: int,
      process_index: int, process_count: int):
    self._source, self._count = source, count
    self._prepare = dict(size=size, crop="center", flip=False, max_pixels=max_pixels)
    self._local = global_batch // process_count
    self._offset, self._global, self._size = process_index * self._local, global_batch, size

  def __len__(self) -> int:
    """Batches, the same on every process."""
    return math.ceil(self._count / self._global)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """One batch: a broken record is logged and masked out, it counts nowhere."""
    first = index * self._global + self._offset
    ids = np.arange(first, first + self._local, dtype=np.int64)
    mask = ids < self._count
    images = np.zeros((self._local, self._size, self._size, 3), np.uint8)
    for i in np.flatnonzero(mask):
      image, fault = _try_read(self._source, int(ids[i]), self._prepare, None)
      if image is None:
        logging.warning("broken record left out of the evaluation: %s", fault)
        mask[i] = False
      else:
        images[i] = image
    return {"image": images, "_mask": mask, "_id": ids}

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    read = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)
    return iter(grain.MapDataset.source(self).to_iter_dataset(read))


def eval_batches(
    config: ml_collections.ConfigDict, eval_set: tuple[str, str, str, str], *, process_index: int,
    process_count: int, workdir: str
) -> EvalBatches:
  """Batches that hold every example of a set exactly once over all processes.

  Args:
    config: uses eval.batch_size, eval.max_examples, image_size and data.
    eval_set: row (name, protocol, kind, path) of config.eval.sets.
    process_index: of this process.
    process_count: number of processes; must divide eval.batch_size.
    workdir: of the run.

  Raises:
    ValueError: for an unknown protocol.
  """
  name, protocol, kind, path = eval_set
  if protocol != "native" and protocol not in _PROTOCOL_SIZE:
    raise ValueError(f"eval set {name}: unknown protocol {protocol!r}; choose native, "
                     f"{', '.join(_PROTOCOL_SIZE)}")
  if config.eval.batch_size % process_count:
    raise ValueError(
        f"eval.batch_size={config.eval.batch_size} does not divide over {process_count} processes")
  source = sources.make(kind, path, workdir=workdir, index_dir=_index_dir(config, workdir))
  count = min(len(source), config.eval.max_examples or len(source))
  return EvalBatches(
      source, count, size=_PROTOCOL_SIZE.get(protocol, config.image_size),
      max_pixels=config.data.max_pixels, global_batch=config.eval.batch_size,
      process_index=process_index, process_count=process_count)


class to_device:
  """Yields (host batch, device batch), keeping transfers in flight ahead of the consumer."""

  def __init__(self, batches: Iterator, sharding: jax.sharding.Sharding, prefetch: int):
    """Wraps an iterator.

    Args:
      batches: of dicts of arrays, this process's share.
      sharding: of the global batch.
      prefetch: batches on the device ahead of the one handed out; 0 copies on demand.
    """
    self._batches, self._sharding = batches, sharding
    self._queue: collections.deque = collections.deque()
    self._depth = prefetch + 1

  def __iter__(self) -> "to_device":
    return self

  def __next__(self) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
    while len(self._queue) < self._depth:
      try:
        batch = next(self._batches)
      except StopIteration:
        break
      self._queue.append((batch, self._put(batch)))
    if not self._queue:
      raise StopIteration
    return self._queue.popleft()

  def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jax.make_array_from_process_local_data(self._sharding, value)
            for name, value in batch_lib.device_part(batch).items()}

  def close(self) -> None:
    """Closes the wrapped iterator."""
    self._queue.clear()
    close = getattr(self._batches, "close", None)
    if close is not None:
      close()
