"""The batches of a run: read from the data, or of rollouts for a task that learns from rewards."""

from typing import Any, Protocol

import jax
import ml_collections
import numpy as np

from unilip_jax.data import batch as batch_lib
from unilip_jax.data import pipeline
from unilip_jax.multihost import session
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base
from unilip_jax.training import rollouts


class Inputs(Protocol):
  """Yields the batches of a run.

  Attributes:
    stream: of this process's records.
  """

  stream: pipeline.TrainStream

  def next(self, state: state_lib.TrainState) -> tuple[np.ndarray, dict[str, Any], dict[str, float]]:
    """Returns (int64 stream positions of this process's part, batch on the devices, its metrics)."""

  def close(self) -> None:
    """Ends processes and threads."""


class FromData:
  """Batches as the data pipeline makes them; attributes as of Inputs."""

  def __init__(self, stream: pipeline.TrainStream, mesh: jax.sharding.Mesh, prefetch: int):
    self.stream = stream
    self._batches = pipeline.to_device(stream, mesh_lib.batch_sharding(mesh), prefetch)

  def next(self, state: state_lib.TrainState) -> tuple[np.ndarray, dict[str, Any], dict[str, float]]:
    del state
    host, batch = next(self._batches)
    return batch_lib.ids(host), batch, {}

  def close(self) -> None:
    self._batches.close()


def open_inputs(
    config: ml_collections.ConfigDict, task: base.Task, mesh: jax.sharding.Mesh, *, step: int,
    position: int, workdir: str
) -> Inputs:
  """Opens the data at a stream position.

  Args:
    config: of the run.
    task: whose batches these are.
    mesh: the devices.
    step: number of earlier updates.
    position: stream position of the next batch, as a checkpoint holds it.
    workdir: of the run.

  Raises:
    ValueError, FileNotFoundError: as pipeline.train_stream.
  """
  learns = isinstance(task, base.LearnsFromRewards)
  done = step % config.reward.updates if learns else 0
  stream = pipeline.train_stream(
      config, start_position=position - done * config.batch_size, process_index=jax.process_index(),
      process_count=jax.process_count(), workdir=workdir)
  session.assert_equal_across_hosts(
      "the images of data.buckets", stream.buckets, "give all hosts the same data")
  if learns:
    return rollouts.Rollouts(config, task, mesh, stream, step=step)
  return FromData(stream, mesh, config.data.prefetch)
