"""The train step as a program: traced, compiled ahead of time, and its FLOPs counted."""

from collections.abc import Callable
import contextlib
import json
from typing import Any

import jax
import ml_collections

from unilip_jax import tasks
from unilip_jax.ops import backend
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import flops, initial_state


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
  abstract = initial_state.abstract_state(task, config, mesh)
  batch = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=mesh_lib.batch_sharding(mesh)),
      task.batch_spec(config.batch_size))
  out = jax.tree.map(lambda s: s.sharding, abstract), mesh_lib.replicated(mesh)
  step = activations.under(mesh, task.train_step)
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
