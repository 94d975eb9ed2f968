"""The training loop of all stages, to be read from top to bottom.

The task defines the step (tasks/). Hooks define what happens around a step (training/hooks.py).
"""

import contextlib
import functools

from absl import logging
from etils import epath
import jax
import ml_collections

from unilip_jax import evaluate, tasks
from unilip_jax.common import atomic_io, json_file, paths
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
  metrics,
  preflight,
  profiling,
  samples,
  target_latents,
)
from unilip_jax.training import progress as progress_lib
from unilip_jax.training import step as step_lib
from unilip_jax.weights import language, sources


def train(config: ml_collections.ConfigDict, workdir: str) -> state_lib.TrainState:
  """Trains until `config.total_steps`; continues the run in `workdir` if there is one.

  Args:
    config: of a stage, see configs/base.py.
    workdir: local or gs:// folder for metrics, checkpoints, samples and the report.

  Returns:
    The last state.

  Raises:
    late_metrics.NonFiniteError: with the step, the offending terms and the ids of the batch.
  """
  # ---- devices, task and first state
  checks.check(config)
  own_data.apply(config)
  workdir = paths.absolute(workdir, "--workdir")
  profile = profiling.Profile(config.profile_steps, workdir)
  mesh = mesh_lib.config_mesh(config)
  task = tasks.make(config)
  preflight.check_training(config, mesh, workdir)
  tokenizer = language.bind_tokenizer(config, workdir)
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  session.check_shared(folder)
  if session.index() == 0:
    for place in (folder, folder / samples.FOLDER):
      atomic_io.remove_leftovers(place)
  first_look.write(config, workdir)
  evaluators = evals_base.make_evaluators(config, task, mesh, workdir)
  task.log_settings()
  manager = checkpoint.Manager(
      workdir, keep=config.keep_checkpoints, keep_every=config.keep_every_steps)
  session.assert_equal_across_hosts(
      "the newest checkpoint", str(manager.latest_step()), f"is {workdir} the same folder on all hosts?")
  start = initial_state.restore_or_init(task, config, manager, mesh)
  logging.info("starting at step %d from %s", start.step, start.origin)
  logging.info("%s", sharding_report.text(start.state, mesh, config.mesh.min_shard_size))
  if not start.continues:
    _remove_frozen(folder)
  manager.save_frozen(start.state.frozen, task.model_spec())
  if jax.process_index() == 0:
    language.keep_tokenizer(config, folder)
    _write_config(folder / language.CONFIG, config, start, tokenizer)

  # ---- programs and data
  target_latents.ensure(config, task, task.model_params(start.state), mesh, workdir)
  progress_lib.log_compilation(config)
  step_fn = step_lib.compile_step(task, config, mesh)
  # Collectives of the first step have short timeouts on some backends.
  session.all_gather_text("the step is compiled")
  batches = inputs.open_inputs(
      config, task, mesh, step=start.step, position=start.position, workdir=workdir)
  writer = metrics.Writer(workdir, start_step=start.step)
  progress = progress_lib.Progress(
      config.total_steps, start.step, config.batch_size, step_lib.step_flops(config), mesh,
      log_every_steps=config.log_every_steps)

  # ---- the loop
  with (contextlib.closing(manager), contextlib.closing(batches),
        preemption.StopRequest() as stop, writer, progress, profile):
    run = hooks.Run(config, start.state, start.step, start.position, writer, progress,
                    late_metrics.LateMetrics(config, writer, progress))
    checkpoints = hooks.Checkpoints(manager)
    around = [
        hooks.Profiling(profile, step_fn),
        checkpoints,
        hooks.Samples(samples.make(config, task, mesh, workdir),
                      functools.partial(samples.exists, workdir), task.model_params),
        hooks.Evaluations(
            lambda state: evaluate.run_all(evaluators, task.model_params(state)), stop)]
    del start  # its state is donated to the first step
    try:
      for hook in around:
        hook.at_start(run)
      while run.step < config.total_steps and not stop.reached():
        session.doing(f"reading the batch of step {run.step + 1}")
        for hook in around:
          hook.before_step(run)
        with jax.profiler.StepTraceAnnotation("train", step_num=run.step + 1):
          ids, batch, measured = batches.next(run.state)
          with session.waiting(f"step {run.step + 1}"):
            state, values = step_fn(run.state, batch)
        run.advance(state, ids, values | measured)
        for hook in around:
          hook.after_step(run)
      run.finish()
    except preemption.Stopped:
      pass
    checkpoints.save(run)
    with session.waiting("the last checkpoint"):
      manager.wait()
    if run.step < config.total_steps:
      logging.info("stopped on request at step %d; rerun the same command to continue", run.step)
  if batches.stream.bad.count:
    logging.warning("%d broken records were replaced", batches.stream.bad.count)
  return run.state


def _remove_frozen(folder: epath.Path) -> None:
  """Removes frozen weights of a start that failed before its first checkpoint; they may be others."""
  steps = folder / sources.STEPS  # a damaged checkpoint that was set aside is one, too
  if jax.process_index() == 0 and (folder / sources.FROZEN).exists() and not (
      steps.exists() and any(steps.iterdir())):
    logging.warning("%s holds frozen weights and no checkpoint: they are written again", folder)
    (folder / sources.FROZEN).rmtree()
  session.all_gather_text("frozen weights of a failed start are removed")


def _write_config(
    path: epath.Path, config: ml_collections.ConfigDict, start: initial_state.Start, tokenizer: str
) -> None:
  """Writes config.json: the config, the origin of the run's first weights and its tokenizer's SHA-256."""
  origin = start.origin
  if start.continues and path.exists():
    try:
      origin = json_file.read(path, remedy="it is written again").get("started_from", origin)
    except ValueError as error:
      logging.error("%s; the origin of the first weights is lost", error)
  entries = {"started_from": origin} | ({language.HASH: tokenizer} if tokenizer else {})
  json_file.write(path, config.to_dict() | entries)
