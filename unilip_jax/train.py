"""THE training loop, one for all stages: read it top to bottom.

What a step computes is the task's (tasks/); this file orders what happens around it. The host never
waits for the step that it has just started: metrics are read one step late.
"""

import contextlib
import json

from absl import logging
from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax import evaluate, tasks
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import pipeline
from unilip_jax.evals import base as evals_base
from unilip_jax.multihost import preemption, session
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import report as sharding_report
from unilip_jax.training import (
  checkpoint,
  initial_state,
  metrics,
  profiling,
  samples,
  target_latents,
)
from unilip_jax.training import progress as progress_lib
from unilip_jax.training import step as step_lib


class NonFiniteError(ValueError):
  """A loss or gradient norm was not finite; the state before that update is kept."""


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
  profile = profiling.Profile(config.profile_steps, workdir)
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  session.check_shared(folder)
  mesh = mesh_lib.config_mesh(config)
  batch_lib.check_divides(config, mesh)
  task = tasks.make(config)
  task.log_settings()
  manager = checkpoint.Manager(
      workdir, keep=config.keep_checkpoints, keep_every=config.keep_every_steps)
  session.assert_equal_across_hosts(
      "the newest checkpoint", str(manager.latest_step()), f"is {workdir} one folder for all?")
  start = initial_state.restore_or_init(task, config, manager, mesh)
  state, step, position = start.state, start.step, start.position
  logging.info("starting at step %d from %s", step, start.origin)
  logging.info("%s", sharding_report.text(state, mesh, config.mesh.min_shard_size))
  manager.save_frozen(state.frozen, task.model_spec())
  if jax.process_index() == 0:
    _write_config(folder / "config.json", config, start)

  # ---- programs and data
  target_latents.ensure(config, task, task.model_params(state), mesh, workdir)
  step_fn = step_lib.compile_step(task, config, mesh)
  # Collectives of the first step have short timeouts on some backends.
  session.all_gather_text("the step is compiled")
  evaluators = evals_base.make_evaluators(config, task, mesh, workdir)
  sample = samples.make(config, task, mesh, workdir)
  stream = pipeline.train_stream(
      config, start_position=position, process_index=jax.process_index(),
      process_count=jax.process_count(), workdir=workdir)
  batches = pipeline.to_device(stream, mesh_lib.batch_sharding(mesh), config.data.prefetch)
  writer = metrics.Writer(workdir, start_step=step)
  progress = progress_lib.Progress(
      config.total_steps, step, config.batch_size, step_lib.step_flops(config), mesh,
      log_every_steps=config.log_every_steps)

  # ---- what happens around the steps
  in_flight = None  # (step, ids, metrics) of the update that the device may still be computing

  def finish() -> None:
    """Reads the metrics of the update in flight, and stops if it was not finite."""
    nonlocal in_flight
    if in_flight is None:
      return
    (done, ids, values), in_flight = in_flight, None
    with session.waiting(f"step {done}"):
      values = jax.device_get(values)
    if not values["finite"] and config.stop_on_nonfinite:
      terms = [name for name, value in values.items() if not np.isfinite(value)]
      raise NonFiniteError(
          f"step {done}: not finite: {', '.join(terms)}; stream positions of this process's part "
          f"of the batch: {ids.tolist()}. The last checkpoint holds the state of an earlier step. "
          "Look at these records, lower optimizer.lr, or set stop_on_nonfinite=False to pass over "
          "such batches")
    progress.update(done, values)
    if done % config.log_every_steps == 0 or done == config.total_steps:
      writer.write(done, {f"train/{k}": v for k, v in values.items()} | progress.rates())

  def save() -> None:
    with session.waiting(f"the checkpoint of step {step}"):
      manager.save(step, state, {"step": step, "position": position})

  def run_evaluation() -> None:
    with stop.interruptible(), progress.paused():
      scores = evaluate.run_all(evaluators, task.model_params(state))
    writer.write(step, {f"eval/{name}": value for name, value in scores.items()})

  # ---- the loop
  with (contextlib.closing(manager), contextlib.closing(batches),
        preemption.StopRequest() as stop, writer, progress, profile):
    try:
      # At the start if asked for; later a stop may have come between a checkpoint and its evaluation.
      if ((_due(step, config.eval.every_steps, config) if step else config.eval.at_start)
          and not writer.has_evaluation(step)):
        run_evaluation()
      while step < config.total_steps and not stop.reached():
        session.doing(f"reading the batch of step {step + 1}")
        if profile.starts_at(step + 1):
          finish()
          profile.start(step_fn)
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
          host_batch, batch = next(batches)
          with session.waiting(f"step {step + 1}"):
            state, values = step_fn(state, batch)
        step, position = step + 1, position + config.batch_size
        finish()
        in_flight = step, batch_lib.ids(host_batch), values
        if profile.ends_at(step):
          finish()
          profile.close()
        if _due(step, config.checkpoint_every_steps, config):
          finish()
          save()
        if _due(step, config.sample_every_steps, config):
          with progress.paused(), session.waiting(f"the samples of step {step}"):
            writer.write_image(step, "samples", sample(step, task.model_params(state)))
        if _due(step, config.eval.every_steps, config):
          finish()
          run_evaluation()
      finish()
    except preemption.Stopped:
      pass
    save()
    with session.waiting("the last checkpoint"):
      manager.wait()
    if step < config.total_steps:
      logging.info("stopped on request at step %d; rerun the same command to continue", step)
  if stream.bad.count:
    logging.warning("%d broken records were replaced", stream.bad.count)
  return state


def _write_config(path: epath.Path, config: ml_collections.ConfigDict, start: initial_state.Start) -> None:
  """config.json: the config, and where the run's first start took its weights from."""
  origin = start.origin
  if start.continues and path.exists():
    origin = json.loads(path.read_text()).get("started_from", origin)
  path.write_text(json.dumps(
      config.to_dict() | {"started_from": origin}, indent=2, default=str))


def _due(step: int, every: int, config: ml_collections.ConfigDict) -> bool:
  """Whether something done `every` steps and at the end is due; 0 means never."""
  return every > 0 and (step % every == 0 or step == config.total_steps)
