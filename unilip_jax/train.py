"""THE training loop, one for all stages: read it top to bottom.

What a step computes is the task's (tasks/); this file orders what happens around it. The host never
waits for the step that it has just started: metrics are read one step late.
"""

from collections.abc import Callable
import contextlib
import json
from typing import Any

from absl import logging
from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax import batch as batch_lib
from unilip_jax import (
  caching,
  checkpoint,
  evaluate,
  flops,
  hosts,
  initial,
  metrics,
  preemption,
  profiling,
  samples,
  sharding,
  sharding_report,
  tasks,
)
from unilip_jax import state as state_lib
from unilip_jax.data import pipeline
from unilip_jax.ops import backend


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
  hosts.check_shared(folder)
  mesh = sharding.config_mesh(config)
  sharding.check_batch(config, mesh)
  task = tasks.make(config)
  task.log_setup()
  manager = checkpoint.Manager(
      workdir, keep=config.keep_checkpoints, keep_every=config.keep_every_steps)
  hosts.same("the newest checkpoint", str(manager.latest_step()), f"is {workdir} one folder for all?")
  start = initial.start(task, config, manager, mesh)
  state, step, position = start.state, start.step, start.position
  logging.info("starting at step %d from %s", step, start.origin)
  logging.info("%s", sharding_report.text(state, mesh, config.mesh.min_shard_size))
  manager.save_once(state.frozen, task.dims())
  if jax.process_index() == 0:
    _write_config(folder / "config.json", config, start)

  # ---- programs and data
  caching.ensure(config, task, task.model_params(state), mesh, workdir)
  step_fn = compile_step(task, config, mesh)
  hosts.gather("the step is compiled")  # collectives of the first step have short patience on some backends
  evaluators = evaluate.evaluators(config, task, mesh, workdir)
  sample = samples.make(config, task, mesh, workdir)
  stream = pipeline.train_stream(
      config, start_position=position, process_index=jax.process_index(),
      process_count=jax.process_count(), workdir=workdir)
  batches = pipeline.to_device(stream, sharding.batch(mesh), config.data.prefetch)
  writer = metrics.Writer(workdir, start_step=step)
  progress = metrics.Progress(
      config.total_steps, step, config.batch_size, step_flops(config), mesh,
      log_every_steps=config.log_every_steps)

  # ---- what happens around the steps
  in_flight = None  # (step, ids, metrics) of the update that the device may still be computing

  def finish() -> None:
    """Reads the metrics of the update in flight, and stops if it was not finite."""
    nonlocal in_flight
    if in_flight is None:
      return
    (done, ids, values), in_flight = in_flight, None
    with hosts.waiting(f"step {done}"):
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
    with hosts.waiting(f"the checkpoint of step {step}"):
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
        hosts.doing(f"reading the batch of step {step + 1}")
        if profile.starts_at(step + 1):
          finish()
          profile.start(step_fn)
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
          host_batch, batch = next(batches)
          with hosts.waiting(f"step {step + 1}"):
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
          with progress.paused(), hosts.waiting(f"the samples of step {step}"):
            writer.write_image(step, "samples", sample(step, task.model_params(state)))
        if _due(step, config.eval.every_steps, config):
          finish()
          run_evaluation()
      finish()
    except preemption.Stopped:
      pass
    save()
    with hosts.waiting("the last checkpoint"):
      manager.wait()
    if step < config.total_steps:
      logging.info("stopped on request at step %d; rerun the same command to continue", step)
  if stream.bad.count:
    logging.warning("%d broken records were replaced", stream.bad.count)
  return state


def _write_config(path: epath.Path, config: ml_collections.ConfigDict, start: initial.Start) -> None:
  """config.json: the config, and where the run's first start took its weights from."""
  origin = start.origin
  if start.continues and path.exists():
    origin = json.loads(path.read_text()).get("started_from", origin)
  path.write_text(json.dumps(
      config.to_dict() | {"started_from": origin}, indent=2, default=str))


def _due(step: int, every: int, config: ml_collections.ConfigDict) -> bool:
  """Whether something done `every` steps and at the end is due; 0 means never."""
  return every > 0 and (step % every == 0 or step == config.total_steps)


def compile_step(task: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Any:
  """Compiles the train step once, ahead of time: another shape is an error, not a recompilation."""
  return compiled(trace_step(task, config, mesh), config)


def compiled(step: Any, config: ml_collections.ConfigDict, **options: Any) -> Any:
  """Compiles a traced step with `config.compiler_options` and `options`.

  Raises:
    ValueError: for options of the config that this compiler does not know.
  """
  own = compiler_options(config.compiler_options)
  try:
    return step.lower().compile(compiler_options=own | options)
  except jax.errors.JaxRuntimeError as error:
    if own and "INVALID_ARGUMENT" in str(error):
      raise ValueError(f"compiler_options={config.compiler_options!r}: {error}; the options of XLA differ "
                       "by backend and release, set compiler_options='' to go without") from error
    raise


def compiler_options(text: str) -> dict[str, Any]:
  """`config.compiler_options` by name; true, false and numbers are what they say.

  Raises:
    ValueError: for what is not "name=value,name=value".
  """
  pairs = [pair.strip() for pair in text.split(",") if pair.strip()]
  if wrong := [pair for pair in pairs if "=" not in pair]:
    raise ValueError(f"compiler_options: {wrong[0]!r} is not name=value")
  split = (pair.removeprefix("--").split("=", 1) for pair in pairs)
  return {name: _value(text) for name, text in split}


def _value(text: str) -> Any:
  try:
    return json.loads(text)
  except ValueError:
    return text


def trace_step(task: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Any:
  """The traced train step, state donated, for the devices of `mesh`, which need not be here (plan/)."""
  abstract = initial.abstract_state(task, config, mesh)
  batch = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding.batch(mesh)),
      task.batch_spec(config.batch_size))
  out = jax.tree.map(lambda s: s.sharding, abstract), sharding.replicated(mesh)
  step = sharding.under(mesh, task.train_step)
  return jax.jit(step, donate_argnums=0, out_shardings=out).trace(abstract, batch)


def step_flops(config: ml_collections.ConfigDict) -> Callable[[int], float]:
  """Matrix FLOPs of the model's own work in the update that follows `step` others.

  What rematerialisation repeats is not counted, nor is the discriminator before its start.
  """
  def count(gan: bool) -> float:
    plain = config.copy_and_resolve_references()  # a copy of the nested ones too
    plain.remat = {name: "none" for name in config.remat}
    if not gan:
      plain.gan.weight = 0.0
    task = tasks.make(plain)
    # A particular TPU may make the scores of its attention twice (ops/attention_parts.py).
    with backend.planning("tpu") if backend.name() == "tpu" else contextlib.nullcontext():
      return flops.count(task.train_step, task.state_shapes(), task.batch_spec(config.batch_size))

  without = count(gan=False)
  if not config.gan.weight:
    return lambda step: without
  with_gan = count(gan=True)
  return lambda step: with_gan if step > config.gan.start_step else without
