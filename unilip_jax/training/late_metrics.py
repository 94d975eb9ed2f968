"""Metrics of a step, read while the next one computes, so that the host never waits for a step."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from unilip_jax.multihost import session
from unilip_jax.training import metrics
from unilip_jax.training import progress as progress_lib


class NonFiniteError(ValueError):
  """A loss or gradient norm was not finite; the state before that update is kept."""


class LateMetrics:
  """Holds the metrics of one update until they are read, logs them, and stops the run if they are bad."""

  def __init__(self, config: ml_collections.ConfigDict, writer: metrics.Writer,
               progress: progress_lib.Progress):
    """Starts empty.

    Args:
      config: uses log_every_steps, total_steps and stop_on_nonfinite.
      writer: takes a row of metrics every log_every_steps and at the end.
      progress: is told of every update.
    """
    self._config, self._writer, self._progress = config, writer, progress
    self._held: tuple[int, np.ndarray, Mapping[str, Any]] | None = None  # (step, ids, metrics)

  def replace(self, step: int, ids: np.ndarray, values: Mapping[str, Any]) -> None:
    """Reads what is held, then holds the metrics of `step`; arguments as of `read`'s error."""
    self.read()
    self._held = step, ids, values

  def read(self) -> None:
    """Reads and logs what is held, if anything.

    Raises:
      NonFiniteError: with the step, the offending terms and the ids of the batch.
    """
    if self._held is None:
      return
    (step, ids, values), self._held = self._held, None
    with session.waiting(f"step {step}"):
      values = jax.device_get(values)
    if not values["finite"] and self._config.stop_on_nonfinite:
      terms = [name for name, value in values.items() if not np.isfinite(value)]
      raise NonFiniteError(
          f"step {step}: not finite: {', '.join(terms)}; stream positions of this process's part "
          f"of the batch: {ids.tolist()}. The last checkpoint holds the state of an earlier step. "
          "Look at these records, lower optimizer.lr, or set stop_on_nonfinite=False to skip such batches")
    self._progress.update(step, values)
    if step % self._config.log_every_steps == 0 or step == self._config.total_steps:
      self._writer.write(
          step, {f"train/{k}": v for k, v in values.items()} | self._progress.rates())
