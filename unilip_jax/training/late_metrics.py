"""Reads the metrics of a step while the next step runs, so that the host does not wait for the devices."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from unilip_jax.multihost import session
from unilip_jax.training import ledger, metrics
from unilip_jax.training import progress as progress_lib


class NonFiniteError(ValueError):
  """Reports a loss or gradient norm that is not finite; the state before that update was kept."""


class LateMetrics:
  """Holds the metrics of one update until they are read, logs them, and stops the run if they are bad."""

  def __init__(self, config: ml_collections.ConfigDict, writer: metrics.Writer,
               progress: progress_lib.Progress):
    """Starts without metrics.

    Args:
      config: uses log_every_steps, total_steps and stop_on_nonfinite.
      writer: gets a row of metrics every log_every_steps and at the end.
      progress: gets the metrics of every update.
    """
    self._config, self._writer, self._progress = config, writer, progress
    self._pending: tuple[int, np.ndarray, Mapping[str, Any]] | None = None  # (step, ids, metrics)

  def replace(self, step: int, ids: np.ndarray, values: Mapping[str, Any]) -> None:
    """Reads the pending metrics, then holds those of `step`.

    Args:
      step: of the metrics.
      ids: int64[b] stream positions of this process's part of the batch, for the error.
      values: {metric: float32[]}.

    Raises:
      NonFiniteError: see `read`.
    """
    self.read()
    self._pending = step, ids, values

  def read(self) -> None:
    """Reads and logs the pending metrics, if there are any.

    Raises:
      NonFiniteError: with the step, the offending terms and the ids of the batch.
    """
    if self._pending is None:
      return
    (step, ids, values), self._pending = self._pending, None
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
          step, {f"train/{k}": v for k, v in values.items()} | self._progress.rates() | ledger.totals())
