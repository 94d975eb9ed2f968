"""THE training loop, one for all stages: read it top to bottom.

What a step computes is the task's (tasks/); this file orders what happens around it. The host never
waits for the step that it has just started: metrics are read one step late.
"""

from collections.abc import Iterator
import json
from typing import Any

from absl import logging
from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax import checkpoint, evaluate, flops, grids, initial, metrics, preemption, sharding
from unilip_jax import state as state_lib
from unilip_jax import tasks
from unilip_jax.data import pipeline


class NonFiniteError(ValueError):
  """A loss or gradient norm was not finite; the state before it is kept."""


def train(config: ml_collections.ConfigDict, workdir: str) -> state_lib.TrainState:
  """Trains until `config.total_steps`, continuing whatever `workdir` holds.

  Args:
    config: of a stage, see configs/base.py.
    workdir: local or gs:// folder for metrics, checkpoints, samples and the report.

  Returns:
    The last state.

  Raises:
    NonFiniteError: with the step, the offending terms and the ids of the batch.
  """
  # ---- devices, task and first state
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  sharding.check_batch_size(config.batch_size, mesh, "batch_size")
  task = tasks.make(config)
  task.log_setup()
  manager = checkpoint.Manager(
      workdir, keep=config.keep_checkpoints, keep_every=config.keep_every_steps)
  start = initial.start(task, config, manager, mesh)
  state, first_step = start.state, int(start.state.step)
  logging.info("starting at step %d from %s", first_step, start.origin)
  manager.save_once(state.frozen, task.dims())
  if jax.process_index() == 0:
    (folder / "config.json").write_text(json.dumps(
        config.to_dict() | {"started_from": start.origin}, indent=2, default=str))

  # ---- the step, compiled once, ahead of time: another shape is an error, never a recompilation
  step_fn = compile_step(task, config, mesh)
  evaluators = evaluate.evaluators(config, task, mesh, workdir)
  sample = Samples(config, task, mesh, workdir)

  # ---- data
  stream = pipeline.train_stream(
      config, start_position=start.position, process_index=jax.process_index(),
      process_count=jax.process_count(), workdir=workdir)
  batches = pipeline.to_device(stream, sharding.batch(mesh), config.data.prefetch)

  # ---- what happens around the steps
  writer = metrics.Writer(workdir, start_step=first_step)
  progress = metrics.Progress(
      config.total_steps, first_step, config.batch_size, step_flops(task, config), mesh)

  def save(step: int) -> None:
    manager.save(step, state, {"position": first_position + batches_taken * config.batch_size})

  def run_evaluation(step: int) -> None:
    with stop.interruptible():
      params = task.model_params(state)
      writer.write(step, {f"eval/{k}": v for k, v in evaluate.run_all(evaluators, params).items()})

  first_position, batches_taken = start.position, 0
  pending = None  # (step, ids, metrics) of the update in flight

  def finish(pending) -> None:
    """Reads the metrics of an update that the device has done by now."""
    step, ids, values = pending
    values = jax.device_get(values)
    if not values["finite"] and config.stop_on_nonfinite:
      bad = sorted(k for k, v in values.items() if not np.isfinite(v))
      raise NonFiniteError(
          f"step {step}: not finite: {', '.join(bad)}; stream positions of this process's part of "
          f"the batch: {ids.tolist()}. The state before this step is in the last checkpoint; look "
          "at these records, lower optimizer.lr, or set stop_on_nonfinite=False to skip such batches")
    progress.update(step, values)
    if step % config.log_every_steps == 0 or step == config.total_steps:
      writer.write(step, {f"train/{k}": v for k, v in values.items()} | progress.rates())

  with preemption.StopRequest() as stop, writer, progress:
    step = first_step
    try:
      if _due(step, config.eval.every_steps) and not writer.has_evaluation(step):
        run_evaluation(step)  # a stop came between this checkpoint and its evaluation
      while step < config.total_steps and not stop.requested:
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
          host_batch, batch = next(batches)
          state, values = step_fn(state, batch)
        batches_taken += 1
        step += 1
        if pending:
          finish(pending)
        pending = (step, host_batch["_id"], values)
        last = step == config.total_steps
        if last or _due(step, config.checkpoint_every_steps):
          save(step)
        if last or _due(step, config.sample_every_steps):
          sample(step, task.model_params(state))
        if last or _due(step, config.eval.every_steps):
          run_evaluation(step)
        if manager.reached_preemption(step):
          break
    except preemption.Stopped:
      pass
    if pending:
      finish(pending)
    save(step)
    manager.wait()
    if stop.requested:
      logging.info("stopped on request at step %d; rerun the same command to continue", step)
  batches.close()
  manager.close()
  return state
