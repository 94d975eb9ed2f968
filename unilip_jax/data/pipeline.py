"""Streams of batches for training and evaluation, and their transfer to the devices.

grain computes batches (batches.py) in threads or worker processes and keeps their order, so the stream
is the same for any number of either. The only file that imports grain.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import math
import os
from typing import Any

from absl import flags, logging
import grain
import jax
import ml_collections
import numpy as np

from unilip_jax.common import child, paths
from unilip_jax.data import aspect, examples, latents, sources
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import batches as batches_lib
from unilip_jax.data import stream as stream_lib
from unilip_jax.multihost import preemption

_MIN_RECORDS = 1000  # the broken fraction is judged on at least this many records
_THREADS = 4  # that decode in a process; PIL releases the interpreter lock
_PROTOCOL_SIZE = {"224": 224, "448": 448, "pad256": 256}

DataError = batches_lib.DataError


class BadRecords:
  """Counts broken records and stops the run when there are too many.

  Attributes:
    count: broken records so far.
    skipped: records that a rule left out so far.
    examples: the newest few broken ones.
  """

  def __init__(self, max_fraction: float):
    self._max_fraction = max_fraction
    self.count, self.skipped, self._read = 0, 0, 0
    self.examples: collections.deque = collections.deque(maxlen=8)

  def note(self, faults: np.ndarray, records: int) -> None:
    """Logs and counts the broken and skipped records of one batch.

    Args:
      faults: `_bad` of the batch.
      records: examples in the batch.

    Raises:
      DataError: beyond the configured fraction.
    """
    for line in faults.tobytes().decode().splitlines():
      fault = json.loads(line)
      if fault.get("skipped"):
        self.skipped += 1
        if math.log10(self.skipped).is_integer():  # 1, 10, 100, …
          logging.warning("%d of %d records were skipped by a rule; the last one, %s in %s: %s",
                          self.skipped, self._read + records, fault["key"], fault["shard"], fault["why"])
        continue
      self.examples.append(fault)
      self.count += 1
      logging.warning("broken record %(key)s in %(shard)s: %(why)s", fault)
    self.judge(0, records)

  def judge(self, broken: int, records: int) -> None:
    """Counts `records` of which `broken`, logged before, are broken.

    Raises:
      DataError: beyond the configured fraction.
    """
    self._read += records
    self.count += broken
    if self.count > self._max_fraction * max(self._read, _MIN_RECORDS):
      raise DataError(
          f"{self.count} of {self._read} records are broken, more than data.max_bad_fraction="
          f"{self._max_fraction}; the newest: {list(self.examples) or 'see the log'}")


class TrainStream:
  """Iterator over this process's batches.

  Attributes:
    position: stream position of the next batch to be returned; all that a checkpoint needs.
    bad: counts the broken records.
    buckets: see TrainBatches.describe_buckets.
  """

  def __init__(
      self, batches: batches_lib.TrainBatches, *, start_position: int, batch_size: int, workers: int,
      max_bad_fraction: float):
    """Starts reading.

    Args:
      batches: of this process.
      start_position: stream position of the first batch.
      batch_size: examples in a global batch.
      workers: decoding processes; 0 decodes in threads of this process.
      max_bad_fraction: see BadRecords.
    """
    self.position, self._batch_size = start_position, batch_size
    self.buckets = batches.describe_buckets()
    self.bad = BadRecords(max_bad_fraction)
    dataset = grain.MapDataset.source(batches)
    # A worker decodes on its share of the cores. At most one batch waits, since each costs memory.
    threads = max(1, min(_THREADS, (os.cpu_count() or 1) // max(1, workers)))
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    dataset = dataset.to_iter_dataset(read)
    if workers:
      if not flags.FLAGS.is_parsed():  # grain's workers read absl flags
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(
          grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
          worker_init_fn=child.end_with_parent)
    self._iterator: grain.DatasetIterator | None = iter(dataset)

  def __iter__(self) -> "TrainStream":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      batch = dict(next(self._iterator))
    except RuntimeError as error:  # grain polls its workers every second
      if "terminated unexpectedly" not in str(error):
        raise
      raise DataError(
          f"a decoding process of the input pipeline died ({error}). Exit code -9 mostly means that "
          "the machine was out of memory: lower data.workers or the batch size, then start again; the "
          "run continues from its checkpoint") from error
    self.position += self._batch_size
    self.bad.note(batch.pop("_bad"), len(batch_lib.ids(batch)))
    return batch

  def close(self) -> None:
    """Ends worker processes and threads, and logs how many records were broken."""
    if self._iterator is not None:
      self._iterator.close()
      if self.bad.count:
        logging.warning("%d broken records were replaced", self.bad.count)
    self._iterator = None  # grain's iterators have to be collected before the interpreter exits


def _folders(data: ml_collections.ConfigDict, workdir: str) -> sources.Folders:
  """Returns the folders of `config.data`, or those of the run."""
  return sources.Folders(
      render=paths.expand(data.render_dir or os.path.join(workdir, "rendered"), "data.render_dir"),
      index=paths.expand(data.index_dir or os.path.join(workdir, "index"), "data.index_dir"))


def open_spec(
    data: ml_collections.ConfigDict, spec: sources.SourceSpec, example: str, workdir: str
) -> sources.Source:
  """Opens a source with the folders and limits of `config.data`."""
  return sources.open_source(
      spec, example=example, folders=_folders(data, workdir), max_bad_fraction=data.max_bad_fraction)


def train_stream(
    config: ml_collections.ConfigDict, *, start_position: int, process_index: int,
    process_count: int, workdir: str
) -> TrainStream:
  """Opens the training data at a stream position.

  Args:
    config: uses data.*, text.*, batch_size, image_size, seed and size.
    start_position: as a checkpoint holds it.
    process_index: of this process.
    process_count: number of processes; must divide batch_size and the sub-batches.
    workdir: of the run.

  Raises:
    ValueError: for settings that do not fit together.
    FileNotFoundError: if a source is absent.
  """
  sizes = batch_lib.part_sizes(config)
  for name, size in sizes.items():
    if size % process_count:
      raise ValueError(f"{name or 'batch_size'}={size} does not divide over {process_count} processes")
  parts, weights = zip(*(
      _part(config, i, name, size, workdir) for i, (name, size) in enumerate(sizes.items())))
  buckets, order = (aspect.split(config, parts, weights, _folders(config.data, workdir).index)
                    if config.data.buckets else ((), None))
  batches = batches_lib.TrainBatches(
      parts, seed=config.seed, start_position=start_position, process_index=process_index,
      process_count=process_count, buckets=buckets, order=order)
  return TrainStream(
      batches, start_position=start_position, batch_size=config.batch_size,
      workers=config.data.workers, max_bad_fraction=config.data.max_bad_fraction)


def _part(
    config, number: int, name: str, size: int, workdir: str) -> tuple[batches_lib.Part, Sequence[float]]:
  """Opens a sub-batch: (it, weights of its sources); `number` gives every sub-batch its own shuffle."""
  example = name or config.data.example
  if config.data.example == "prompt":
    example = {"t2i": "prompt", "edit": "edit_prompt"}[name]
  rows = config.data.edit if name == "edit" else config.data.train
  specs, weights = zip(*(sources.training_row(row) for row in rows))
  inputs = [open_spec(config.data, spec, example, workdir) for spec in specs]
  shape = None
  if config.data.latents_dir:
    inputs = [latents.join(source, config.data.latents_dir, example, spec)
              for source, spec in zip(inputs, specs)]
    shape = inputs[0].shape
  make_example = examples.make(example, config, shape, config.data.decode == "scaled")
  for spec, weight, source in zip(specs, weights, inputs):
    logging.info("training data, %s: %s, %d records, weight %g", example, spec, len(source), weight)
  seed = stream_lib.hashed(config.seed, 4, number) if number else config.seed
  mixture = stream_lib.Mixture([len(source) for source in inputs], weights, seed)
  return batches_lib.Part(name, make_example, inputs, mixture, size), weights


def eval_batches(
    config: ml_collections.ConfigDict, name: str, protocol: str, spec: sources.SourceSpec, *,
    process_index: int, process_count: int, workdir: str, example: str = "reconstruct"
) -> "EvalStream":
  """Opens an evaluation set; over all processes its batches hold every example exactly once.

  Args:
    config: uses eval.batch_size, eval.max_examples, image_size, data.*, text.* and size.
    name: of the set, for messages.
    protocol: "224" | "448" | "pad256" | "native" (the training size).
    spec: source of the examples.
    process_index: of this process.
    process_count: number of processes; must divide eval.batch_size.
    workdir: of the run.
    example: kind of example (examples.py).

  Raises:
    ValueError: for an unknown protocol.
  """
  if protocol != "native" and protocol not in _PROTOCOL_SIZE:
    raise ValueError(f"eval set {name}: unknown protocol {protocol!r}; choose native, "
                     f"{', '.join(_PROTOCOL_SIZE)}")
  if config.eval.batch_size % process_count:
    raise ValueError(
        f"eval.batch_size={config.eval.batch_size} does not divide over {process_count} processes")
  make_example = examples.make(example, config)
  if example == "reconstruct":
    make_example = dataclasses.replace(
        make_example, size=_PROTOCOL_SIZE.get(protocol, config.image_size), crop="center", flip=False)
  source = open_spec(config.data, spec, example, workdir)
  count = min(len(source), config.eval.max_examples or len(source))
  return EvalStream(batches_lib.EvalBatches(
      source, count, make_example, global_batch=config.eval.batch_size, process_index=process_index,
      process_count=process_count), config.data.max_bad_fraction)


def target_source(
    config: ml_collections.ConfigDict, example: str, spec: sources.SourceSpec, *, workdir: str
) -> sources.Source:
  """Opens the target images of a generation stage; `example` is "t2i" or "edit"."""
  return latents.images_of(open_spec(config.data, spec, example, workdir), example)


def target_batches(
    config: ml_collections.ConfigDict, images: sources.Source, *, process_index: int, process_count: int
) -> "EvalStream":
  """Reads the target images of a generation stage, in the source's order, with hashes of their files.

  Args:
    config: uses eval.batch_size, image_size and data.
    images: see `target_source`.
    process_index: of this process.
    process_count: number of processes; must divide eval.batch_size.
  """
  make_example = examples.Target(config.image_size, config.data.max_pixels)
  return EvalStream(batches_lib.EvalBatches(
      images, len(images), make_example, global_batch=config.eval.batch_size, process_index=process_index,
      process_count=process_count), config.data.max_bad_fraction)


class EvalStream:
  """Iterates over evaluation batches, decoding ahead; can be iterated again.

  Attributes:
    count: total number of examples.
  """

  def __init__(self, batches: batches_lib.EvalBatches, max_bad_fraction: float):
    self._batches, self.count = batches, batches.count
    self._bad = BadRecords(max_bad_fraction)

  def __len__(self) -> int:
    return len(self._batches)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self._batches[index]

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self.between(0, len(self))

  def between(self, first: int, last: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches first … last − 1.

    Raises:
      DataError: if too many records are broken (data.max_bad_fraction).
    """
    read = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)
    for batch in grain.MapDataset.source(self._batches)[first:last].to_iter_dataset(read):
      preemption.preemption_point()
      ids = [i for i in batch["_id"].tolist() if i < self.count]
      self._bad.judge(len(self._batches.broken.intersection(ids)), len(ids))
      yield batch


class to_device:
  """Yields (host batch, device batch), keeping transfers in flight ahead of the consumer."""

  def __init__(self, stream: TrainStream, sharding: jax.sharding.Sharding, prefetch: int):
    """Wraps a stream.

    Args:
      stream: of this process.
      sharding: of the global batch.
      prefetch: batches on the device ahead of the one returned; 0 copies on demand.
    """
    self._stream, self._sharding = stream, sharding
    self._queue: collections.deque = collections.deque()
    self._depth = prefetch + 1

  def __iter__(self) -> "to_device":
    return self

  def __next__(self) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
    while len(self._queue) < self._depth:
      try:
        batch = next(self._stream)
      except StopIteration:
        break
      self._queue.append((batch, self._put(batch)))
    if not self._queue:
      raise StopIteration
    return self._queue.popleft()

  def _put(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(
        lambda value: jax.make_array_from_process_local_data(self._sharding, value),
        batch_lib.device_part(batch))

  def close(self) -> None:
    """Closes the wrapped stream."""
    self._queue.clear()
    self._stream.close()
