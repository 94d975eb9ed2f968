"""Finds a run's first state: this workdir, another run, weights alone, or random weights.

checkpoint.py states the order. The log lists the origin of each module.
"""

import dataclasses
import functools
from typing import Any

from absl import logging
import jax
import ml_collections

from unilip_jax.common import tree
from unilip_jax.ops import program_store, seeds
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import param_rules
from unilip_jax.sharding import report as sharding_report
from unilip_jax.tasks import identity
from unilip_jax.training import checkpoint
from unilip_jax.weights import restore, sources


@dataclasses.dataclass(frozen=True)
class Start:
  """Describes where a run begins.

  Attributes:
    state: on the mesh.
    step: number of updates, including skipped non-finite ones, which `state.step` does not count.
    position: next stream position of the training data.
    origin: for log and report, e.g. "workdir, step 200" or "runs/stage1".
    continues: whether the state is from the workdir itself.
  """

  state: state_lib.TrainState
  step: int
  position: int
  origin: str
  continues: bool = False


def abstract_state(task: Any, config: ml_collections.ConfigDict, mesh) -> state_lib.TrainState:
  """Computes shapes, dtypes and shardings of the task's state; makes no array.

  Raises:
    ValueError: if a large array would be replicated although the config does not request it, see
      sharding_report.check; for an unknown `mesh.frozen_sharding`.
  """
  if config.mesh.frozen_sharding not in ("fsdp", "replicated"):
    raise ValueError(f"mesh.frozen_sharding={config.mesh.frozen_sharding!r}; choose fsdp or replicated")
  shapes = task.state_shapes()
  replicate_frozen = config.mesh.frozen_sharding == "replicated"
  sharding_report.check(
      tree.merge(shapes.params, shapes.frozen), mesh, config.mesh.min_shard_size,
      config.mesh.max_replicated, allowed=tree.flatten(shapes.frozen) if replicate_frozen else ())
  shardings = param_rules.tree_shardings(shapes, mesh, config.mesh.min_shard_size)
  if replicate_frozen:
    shardings = shardings.replace(
        frozen=jax.tree.map(lambda _: mesh_lib.replicated(mesh), shapes.frozen))
  return jax.tree.map(
      lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings)


def restore_or_init(
    task: Any, config: ml_collections.ConfigDict, manager: checkpoint.Manager, mesh
) -> Start:
  """Finds the run's first state.

  Raises:
    FileNotFoundError: if `resume` or `init_from` is absent; the message explains what to download or run.
    ValueError: if weights do not fit, with each path and both shapes.
  """
  abstract = abstract_state(task, config, mesh)
  if manager.latest_step() is not None:
    state, data = manager.restore(abstract)
    return Start(state, data["step"], data["position"], f"this workdir, step {data['step']}",
                 continues=True)
  if config.resume:
    workdir, step = sources.split_step(config.resume)
    other = checkpoint.Manager(workdir, keep=None, read_only=True)
    if other.latest_step() is None:
      raise FileNotFoundError(f"resume={config.resume} holds no checkpoint")
    state, data = other.restore(abstract, step)
    return Start(state, data["step"], data["position"], f"{workdir}, step {data['step']}")
  modules, origin = _modules(task, config, mesh)
  shardings = jax.tree.map(lambda s: s.sharding, abstract)
  make_state = jax.jit(task.make_state, out_shardings=shardings)
  state = _run(task, "make_state", make_state, modules, seeds.words(config.seed, "config.seed"))
  return Start(state, 0, 0, origin)


def _run(task: Any, name: str, jitted: Any, *arguments: Any) -> Any:
  """Calls a jitted function of a task once, as the program that an earlier start stored."""
  run = program_store.program(
      name, identity.of(type(task), task.config), (arguments, {}), lambda: jitted.lower(*arguments),
      lambda lowered: lowered.compile())
  return run(*arguments)


def _modules(task, config, mesh) -> tuple[dict[str, Any], str]:
  """Returns ({module: weights}, origin): from `init_from` where it holds the module, else random.

  If several sources hold a module, the last one is used. Arrays are read onto their shardings; no host
  holds a complete copy.
  """
  abstract = task.module_shapes
  shardings = param_rules.tree_shardings(abstract, mesh, config.mesh.min_shard_size)
  paths = restore.sources_of(config.init_from)

  def make(function, names, argument):
    """Computes the modules `names` of `function(argument)` on their devices; XLA drops the others."""
    def selected(argument):
      modules = function(argument)
      return {name: modules[name] for name in names}

    jitted = jax.jit(selected, out_shardings={name: shardings[name] for name in names})
    return _run(task, f"{function.__name__} of {', '.join(names)}", jitted, argument)

  required = task.required_modules()
  if config.loss.perceptual_weights and "loss.perceptual_weights" in required.values():
    paths.append(config.loss.perceptual_weights)
  origins = restore.find_modules(paths, abstract)
  restore.check_shapes(
      origins, abstract, f"init_from={config.init_from} does not fit size {config.size!r}")
  loaded = restore.read_modules(origins, abstract, mesh, config.mesh.min_shard_size,
                                vocab=task.preset.llm.vocab if "llm" in origins else None)
  derived = [name for name in jax.eval_shape(task.fill_missing_modules, loaded)
             if name in abstract and name not in loaded]
  if derived:
    loaded |= make(task.fill_missing_modules, derived, loaded)
  for name, field in required.items():
    if name not in loaded:
      value = functools.reduce(lambda node, key: node[key], field.split("."), config)
      remedy = " or set the loss weight to 0" if field.startswith("loss.") else ""
      raise FileNotFoundError(
          f"{config.stage} needs the weights of {name}, which {field}={value!r} lacks; import them "
          f"(docs/weights.md) and name their folder there{remedy}")
  for name in abstract:
    logging.info("weights of %s: %s", name, origins[name].origin if name in origins else (
        "copied from loaded weights" if name in loaded else "random"))
  # A seed gives the same random weights on every mesh, with any other modules loaded.
  random = [name for name in abstract if name not in loaded]
  if random:
    loaded |= make(task.init_modules, random, seeds.key(seeds.words(config.seed, "config.seed")))
  return {name: loaded[name] for name in abstract}, ", ".join(paths) or "random weights"
