"""Hooks: the loop calls a list of them in order, at the start and around each step.

Metrics are read one step late (late_metrics.py). A hook that needs the state of a checked update calls
`run.finish()` first.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from unilip_jax.multihost import preemption, session
from unilip_jax.optim import state as state_lib
from unilip_jax.training import checkpoint, closing, late_metrics, ledger, metrics, profiling
from unilip_jax.training import progress as progress_lib


@dataclasses.dataclass
class Run:
  """Holds what hooks read and use of a run.

  Attributes:
    config: of the run.
    state: after `step` updates.
    step: number of updates, including skipped non-finite ones.
    position: stream position of the next batch.
    writer: of metrics.jsonl and TensorBoard.
    progress: of the log and the terminal.
    late: metrics of the update that the devices may still compute.
  """

  config: ml_collections.ConfigDict
  state: state_lib.TrainState
  step: int
  position: int
  writer: metrics.Writer
  progress: progress_lib.Progress
  late: late_metrics.LateMetrics

  def advance(self, state: state_lib.TrainState, ids: np.ndarray, values: Mapping[str, Any]) -> None:
    """Records a step that was started, and reads the metrics of the step before it."""
    self.state = state
    self.step, self.position = self.step + 1, self.position + self.config.batch_size
    self.late.replace(self.step, ids, values)

  def finish(self) -> None:
    """Waits for the update in flight and reads its metrics.

    Raises:
      late_metrics.NonFiniteError: if it was not finite.
    """
    self.late.read()

  def is_due(self, every: int) -> bool:
    """Tells whether an action of every `every` steps and of the last step is due; 0 means never."""
    return every > 0 and (self.step % every == 0 or self.step == self.config.total_steps)


class Hook:
  """Base class of hooks; its methods do nothing."""

  def at_start(self, run: Run) -> None:
    """Runs once, before the first step."""

  def before_step(self, run: Run) -> None:
    """Runs before step `run.step + 1`."""

  def after_step(self, run: Run) -> None:
    """Runs after step `run.step` was started."""


class Profiling(Hook):
  """Traces the steps of `config.profile_steps`."""

  def __init__(self, profile: profiling.Profile, step_fn: Any):
    self._profile, self._step_fn = profile, step_fn

  def before_step(self, run: Run) -> None:
    if self._profile.starts_at(run.step + 1):
      run.finish()
      self._profile.start(self._step_fn)

  def after_step(self, run: Run) -> None:
    if self._profile.ends_at(run.step):
      run.finish()
      self._profile.close()


class Checkpoints(Hook):
  """Saves the state every `config.checkpoint_every_steps`; the loop calls `finish` at its end."""

  def __init__(self, manager: checkpoint.Manager, workdir: str):
    self._manager, self._workdir, self._first_step = manager, workdir, 0

  def at_start(self, run: Run) -> None:
    self._first_step = run.step

  def save(self, run: Run) -> None:
    """Starts an asynchronous save of the state."""
    with ledger.during("save"), session.waiting(f"the checkpoint of step {run.step}"):
      run.writer.flush()  # before the checkpoint: a run that resumes from it needs the rows up to it
      self._manager.save(run.step, run.state, {"step": run.step, "position": run.position})

  def after_step(self, run: Run) -> None:
    if run.is_due(run.config.checkpoint_every_steps):
      run.finish()
      self.save(run)

  def finish(self, run: Run) -> None:
    """Saves the last state, waits until it is on disk, writes the ledger's last row, and logs the end."""
    self.save(run)
    with ledger.during("save"), session.waiting("the last checkpoint"):
      self._manager.wait()
    if totals := ledger.totals():
      run.writer.write(run.step, totals)
    if run.step >= run.config.total_steps:
      ledger.end()
      logging.info("%s", closing.text(
          run.config, self._workdir, run.step, trained=run.step > self._first_step))
    else:
      logging.info("stopped on request at step %d; rerun the same command to continue", run.step)


class Samples(Hook):
  """Writes a grid of images every `config.sample_every_steps`."""

  def __init__(
      self, sample: Callable[[int, Any], bytes], exists: Callable[[int], bool],
      model_params: Callable[[state_lib.TrainState], Any]):
    """Stores the functions.

    Args:
      sample: writes the grid of a step and returns it as PNG.
      exists: tells whether the grid of a step is written; equal on all processes.
      model_params: returns the weights to sample with.
    """
    self._sample, self._exists, self._model_params = sample, exists, model_params

  def at_start(self, run: Run) -> None:
    # A kill may come between a checkpoint and its grid: the resumed run writes it at its start.
    if run.step and run.is_due(run.config.sample_every_steps) and not self._exists(run.step):
      self._run(run)

  def after_step(self, run: Run) -> None:
    if run.is_due(run.config.sample_every_steps):
      self._run(run)

  def _run(self, run: Run) -> None:
    with ledger.during("samples"), run.progress.paused(), session.waiting(
        f"the samples of step {run.step}"):
      png = self._sample(run.step, self._model_params(run.state))
      run.writer.write_image(run.step, "samples", png)


class Evaluations(Hook):
  """Scores the model every `config.eval.every_steps`, and at the start with `config.eval.at_start`.

  A preemption notice may arrive between a checkpoint and its evaluation: the resumed run evaluates at its
  start.
  """

  def __init__(self, evaluate: Callable[[state_lib.TrainState], dict[str, float]],
               stop: preemption.StopRequest):
    self._evaluate, self._stop = evaluate, stop

  def at_start(self, run: Run) -> None:
    due = run.is_due(run.config.eval.every_steps) if run.step else run.config.eval.at_start
    if due and not run.writer.has_evaluation(run.step):
      self._run(run)

  def after_step(self, run: Run) -> None:
    if run.is_due(run.config.eval.every_steps):
      run.finish()
      self._run(run)

  def _run(self, run: Run) -> None:
    with ledger.during("evaluation"), self._stop.interruptible(), run.progress.paused():
      scores = self._evaluate(run.state)
    run.writer.write(run.step, {f"eval/{name}": value for name, value in scores.items()})
