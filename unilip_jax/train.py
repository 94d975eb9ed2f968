"""The training loop of all stages, to be read from top to bottom.

The task defines the step (tasks/). Hooks define what happens around a step (training/hooks.py).
"""

import contextlib
import functools
import time

from absl import logging
import jax
import ml_collections

from unilip_jax import evaluate, tasks
from unilip_jax.common import paths
from unilip_jax.configs import checks
from unilip_jax.data.own import apply as own_data
from unilip_jax.evals import base as evals_base
from unilip_jax.multihost import preemption, session
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import report as sharding_report
from unilip_jax.training import (
  checkpoint,
  first_look,
  hooks,
  initial_state,
  inputs,
  late_metrics,
  ledger,
  metrics,
  preflight,
  profiling,
  run_files,
  samples,
  sinks,
  target_latents,
)
from unilip_jax.training import progress as progress_lib
from unilip_jax.training import step as step_lib
from unilip_jax.weights import language


def train(
    config: ml_collections.ConfigDict, workdir: str, *, started: float | None = None
) -> state_lib.TrainState:
  """Trains until `config.total_steps`; continues the run in `workdir` if there is one.

  Args:
    config: of a stage, see configs/base.py.
    workdir: local or gs:// folder for metrics, checkpoints, samples and the report.
    started: Unix seconds when the command began, for the ledger; the default is now.

  Returns:
    The last state.

  Raises:
    late_metrics.NonFiniteError: with the step, the offending terms and the ids of the batch.
  """
  # ---- devices, task and first state
  started = started or time.time()
  checks.check(config)
  own_data.apply(config, workdir)
  workdir = paths.absolute(workdir, "--workdir")
  profile = profiling.Profile(config.profile_steps, workdir)
  mesh = mesh_lib.config_mesh(config)
  task = tasks.make(config)
  preflight.check_training(config, mesh, workdir)
  tokenizer = language.bind_tokenizer(config, workdir)
  folder = run_files.open_folder(workdir)
  with ledger.Ledger(workdir, started=started) as book:
    first_look.write(config, workdir)
    evaluators = evals_base.make_evaluators(config, task, mesh, workdir)
    task.log_settings()
    manager = checkpoint.open_run(config, workdir)
    start = initial_state.restore_or_init(task, config, manager, mesh)
    logging.info("starting at step %d from %s", start.step, start.origin)
    logging.info("%s", sharding_report.text(start.state, mesh, config.mesh.min_shard_size))
    if not start.continues:
      run_files.remove_frozen(folder)
    manager.save_frozen(start.state.frozen, task.model_spec())
    record = run_files.write(folder, config, start, tokenizer)

    # ---- programs and data
    target_latents.ensure(config, task, task.model_params(start.state), mesh, workdir)
    with progress_lib.compilation(config):
      step_fn = step_lib.compile_step(task, config, mesh)
    batches = inputs.open_inputs(
        config, task, mesh, step=start.step, position=start.position, workdir=workdir)
    outside = sinks.open_sinks(config, workdir, record)
    writer = metrics.Writer(workdir, start_step=start.step, sinks=outside)
    progress = progress_lib.Progress(
        config.total_steps, start.step, config.batch_size, step_lib.step_flops(config), mesh,
        log_every_steps=config.log_every_steps)

    # ---- the loop
    with (contextlib.closing(manager), contextlib.closing(batches),
          preemption.StopRequest() as stop, writer, progress, profile):
      run = hooks.Run(config, start.state, start.step, start.position, writer, progress,
                      late_metrics.LateMetrics(config, writer, progress))
      checkpoints = hooks.Checkpoints(manager, workdir)
      around = [
          hooks.Profiling(profile, step_fn), checkpoints,
          hooks.Samples(samples.make(config, task, mesh, workdir),
                        functools.partial(samples.exists, workdir), task.model_params),
          hooks.Evaluations(
              lambda state: evaluate.run_all(evaluators, task.model_params(state)), stop)]
      del start  # its state is donated to the first step
      try:
        for hook in around:
          hook.at_start(run)
        while run.step < config.total_steps and not stop.reached():
          book.begin(run.step + 1)
          session.doing(f"reading the batch of step {run.step + 1}")
          for hook in around:
            hook.before_step(run)
          with jax.profiler.StepTraceAnnotation("train", step_num=run.step + 1):
            with ledger.during("data"):
              ids, batch, measured = batches.next(run.state)
            with ledger.during("step"), session.waiting(f"step {run.step + 1}"):
              state, values = step_fn(run.state, batch)
          book.watch(run.step + 1, values["finite"])
          run.advance(state, ids, values | measured)
          for hook in around:
            hook.after_step(run)
        run.finish()
      except preemption.Stopped:
        pass
      checkpoints.finish(run)
    return run.state
