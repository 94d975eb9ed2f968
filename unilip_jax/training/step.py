"""Traces and compiles the train step ahead of time, and counts its FLOPs."""

from collections.abc import Callable, Mapping
import contextlib
import json
from typing import Any

import jax
import ml_collections

from unilip_jax import tasks
from unilip_jax.common import rectangles, registry
from unilip_jax.data import batch as batch_lib
from unilip_jax.multihost import session
from unilip_jax.ops import backend, program_store
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import identity
from unilip_jax.training import flops, initial_state


def compile_step(task: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Any:
  """Compiles the train step ahead of time: another shape is an error, not a recompilation.

  Returns when all processes have compiled it: collectives of the first step have short timeouts on some
  backends.

  Returns:
    One compiled program; with data.buckets an `OfSizes` of one for each.
  """
  compiled = lambda size: _program(task, config, mesh, size)
  sizes = [tuple(size) for size in config.data.buckets]
  step = OfSizes({size: compiled(size) for size in sizes}) if sizes else compiled(None)
  session.all_gather_text("the step is compiled")
  return step


def _program(task: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh,
             size: rectangles.Size | None) -> Any:
  """Returns the compiled step for one size of images, from disk if an earlier start stored it."""
  return program_store.program(
      "train_step", [identity.of(type(task), config), size], (_arguments(task, config, mesh, size), {}),
      lambda: trace_step(task, config, mesh, size).lower(),
      lambda lowered: compile_lowered(lowered, config.compiler_options), options=config.compiler_options)


class OfSizes:
  """Runs the program that was compiled for the image size of a batch.

  Attributes:
    programs: {(height, width): compiled train step}.
  """

  def __init__(self, programs: Mapping[rectangles.Size, Any]):
    self.programs = dict(programs)

  def __call__(self, state: Any, batch: Mapping[str, Any]) -> Any:
    return self.programs[batch_lib.image_size(batch)](state, batch)

  def as_text(self) -> str:
    """Returns the text of all programs, one after another."""
    return "\n".join(program.as_text() for program in self.programs.values())


def compile_lowered(lowered: Any, options: str, **more_options: Any) -> Any:
  """Compiles a lowered step.

  Args:
    lowered: from `trace_step(…).lower()`.
    options: config.compiler_options.
    **more_options: further options of the compiler.

  Raises:
    ValueError: for `options` that this compiler refuses.
  """
  parsed = compiler_options(options)
  try:
    return lowered.compile(compiler_options=parsed | more_options)
  except jax.errors.JaxRuntimeError as error:
    if parsed and "INVALID_ARGUMENT" in str(error):
      raise ValueError(f"compiler_options={options!r}: {error}; the options of XLA differ by backend and "
                       "release; set compiler_options='' to use none") from error
    raise


def compiler_options(text: str) -> dict[str, Any]:
  """Parses `config.compiler_options`: {name: bool, number or string}.

  Raises:
    ValueError: for text that is not "name=value,name=value".
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


def trace_step(
    task: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh,
    size: rectangles.Size | None = None) -> Any:
  """Traces the train step, which donates its state, for the devices of `mesh`.

  The devices may be absent from this machine (plan/). `size` is (height, width) of the images of a
  generation batch; None is the square, which has at least as many tokens as each of data.buckets.
  """
  abstract, batch = _arguments(task, config, mesh, size)
  out = jax.tree.map(lambda s: s.sharding, abstract), mesh_lib.replicated(mesh)
  step = activations.under(mesh, task.train_step)
  return jax.jit(step, donate_argnums=0, out_shardings=out).trace(abstract, batch)


def _arguments(task: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh,
               size: rectangles.Size | None) -> tuple[Any, dict[str, Any]]:
  """Returns the shapes, dtypes and shardings of a step's state and batch."""
  spec = task.batch_spec(config.batch_size)
  abstract = initial_state.abstract_state(task, config, mesh)
  return abstract, jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=mesh_lib.batch_sharding(mesh)),
      spec if size is None else batch_lib.of_size(spec, size))


def step_flops(config: ml_collections.ConfigDict) -> Callable[[int], float]:
  """Counts the matrix FLOPs of the model's own work in one update, over all devices.

  Recomputation by rematerialisation does not count, and neither does the discriminator before its start.

  Returns:
    fn(step) -> FLOPs of update `step`, counted from 1.
  """
  def count(gan: bool) -> float:
    plain = config.copy_and_resolve_references()  # also copies nested configs
    plain.remat = {name: "none" for name in config.remat}
    if not gan:
      plain.gan.weight = 0.0
    task = tasks.make(plain)
    # Some TPUs compute the scores of the attention twice (ops/attention_parts.py).
    with backend.planning("tpu") if backend.name() == "tpu" else contextlib.nullcontext():
      return flops.count(task.train_step, task.state_shapes(), task.batch_spec(config.batch_size))

  # The count traces the step once more: an earlier start stored it.
  known = identity.of(registry.find("task", config.task), config)
  stored = lambda gan: program_store.value("step_flops", [known, gan], lambda: count(gan))
  without = stored(False)
  if not config.gan.weight:
    return lambda step: without
  with_gan = stored(True)
  return lambda step: with_gan if step > config.gan.start_step else without
