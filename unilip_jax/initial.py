"""A run's first state: continue this workdir, continue another run, take weights, or start random.

The order is stated in checkpoint.py. What was taken from where, and what stays random, is logged.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections

from unilip_jax import checkpoint, sharding, sharding_report, tree, weights
from unilip_jax import state as state_lib
from unilip_jax.models import vocabulary


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run begins.

  Attributes:
    state: on the mesh.
    step: updates tried, passed-over batches included; `state.step` counts those that were made.
    position: next stream position of the training data.
    origin: for log and report, e.g. "workdir, step 200" or "runs/stage1".
    continues: whether the workdir itself held the state.
  """

  state: state_lib.TrainState
  step: int
  position: int
  origin: str
  continues: bool = False


def abstract_state(task: Any, config: ml_collections.ConfigDict, mesh) -> state_lib.TrainState:
  """Shapes, dtypes and shardings of the task's state, without making an array.

  Raises:
    ValueError: if a large array would stay whole on every device, see sharding_report.check.
  """
  shapes = jax.eval_shape(
      lambda: task.make_state(task.init_modules(jax.random.key(0)), jnp.uint32(0)))
  sharding_report.check(
      tree.merge(shapes.params, shapes.frozen), mesh, config.mesh.min_shard_size,
      config.mesh.max_replicated)
  shardings = sharding.tree_shardings(shapes, mesh, config.mesh.min_shard_size)
  return jax.tree.map(
      lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings)


def start(
    task: Any, config: ml_collections.ConfigDict, manager: checkpoint.Manager, mesh
) -> Start:
  """Finds the run's first state.

  Raises:
    FileNotFoundError: if `resume` or `init_from` name nothing, saying what to download or run.
    ValueError: if weights do not fit, with each path and both shapes.
  """
  abstract = abstract_state(task, config, mesh)
  if manager.latest_step() is not None:
    state, data = manager.restore(abstract)
    return Start(state, data["step"], data["position"], f"this workdir, step {manager.latest_step()}",
                 continues=True)
  if config.resume:
    other = checkpoint.Manager(config.resume, keep=None, read_only=True)
    if other.latest_step() is None:
      raise FileNotFoundError(f"resume={config.resume} holds no checkpoint")
    state, data = other.restore(abstract)
    return Start(state, data["step"], data["position"], f"{config.resume}, step {other.latest_step()}")
  modules, origin = _modules(task, config, mesh)
  shardings = jax.tree.map(lambda s: s.sharding, abstract)
  state = jax.jit(task.make_state, out_shardings=shardings)(modules, jnp.uint32(config.seed))
  return Start(state, 0, 0, origin)


def _modules(task, config, mesh) -> tuple[dict[str, Any], str]:
  """Weights by module: from `init_from` where it has them, random elsewhere.

  Of a module that several sources hold, the last one's is taken. Arrays go from disk onto their
  shardings; no host holds them whole.
  """
  abstract = jax.eval_shape(task.init_modules, jax.random.key(0))
  shardings = sharding.tree_shardings(abstract, mesh, config.mesh.min_shard_size)
  sources = [s.strip() for s in config.init_from.split(",") if s.strip()]
  required = task.required_modules()
  if config.loss.perceptual_weights and "loss.perceptual_weights" in required.values():
    sources.append(config.loss.perceptual_weights)
  origins: dict[str, weights.Stored] = {}
  for source in sources:
    stored = checkpoint.open_weights(source)
    for name in sorted(stored.modules & abstract.keys()):
      if name in origins:
        logging.info("%s: %s has it too; the later source's is taken", name, origins[name].origin)
      origins[name] = stored
  _check_shapes(origins, abstract, config)
  loaded = _loaded(task, origins, abstract, shardings)
  adopted = [name for name in jax.eval_shape(task.adopt, loaded) if name not in loaded]
  adopted = [name for name in adopted if name in abstract]
  if adopted:
    loaded |= jax.jit(lambda modules: {name: task.adopt(modules)[name] for name in adopted},
                      out_shardings={name: shardings[name] for name in adopted})(loaded)
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
  # One seed gives one set of random weights on every mesh, whatever else is loaded.
  random = [name for name in abstract if name not in loaded]
  if random:
    loaded |= jax.jit(lambda key: {name: task.init_modules(key)[name] for name in random},
                      out_shardings={name: shardings[name] for name in random})(
                          jax.random.key(config.seed))
  return {name: loaded[name] for name in abstract}, ", ".join(sources) or "random weights"


def _loaded(task, origins, abstract, shardings) -> dict[str, Any]:
  """The modules of `origins` on the mesh, float32."""
  flat, flat_shardings = tree.flatten(abstract), tree.flatten(shardings)
  found: dict[str, jax.Array] = {}
  for stored in dict.fromkeys(origins.values()):
    names = {name for name, of in origins.items() if of is stored}
    found |= stored.restore({
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=flat_shardings[path])
        for path, leaf in flat.items() if path.split("/")[0] in names})
  loaded = tree.unflatten(found)
  if "llm" in loaded:
    saved = weights.module_dims(origins["llm"].model).get("llm", {}).get("vocab")
    wanted = task.preset.llm.vocab
    if saved is not None and saved < wanted:
      logging.info("the language model has %d rows of %d; new ones start as the mean of the others",
                   saved, wanted)
      loaded["llm"] = jax.jit(
          functools.partial(vocabulary.extend, used=saved, vocab=wanted),
          out_shardings=shardings["llm"], donate_argnums=0)(loaded["llm"])
  return loaded


def _check_shapes(
    origins: Mapping[str, weights.Stored], abstract: Mapping[str, Any], config) -> None:
  """Raises ValueError listing each missing, unknown or wrong-shaped path with both shapes."""
  want = {p: tuple(s.shape) for p, s in tree.flatten(abstract).items()
          if p.split("/")[0] in origins}
  have = {p: s.shape for name, stored in origins.items() for p, s in stored.shapes.items()
          if p.split("/")[0] == name}
  wrong = []
  for path in sorted(want.keys() | have.keys()):
    if path not in have:
      wrong.append(f"  {path}: absent in the weights, model {want[path]}")
    elif path not in want:
      wrong.append(f"  {path}: weights {have[path]}, absent in the model")
    elif have[path] != want[path]:
      wrong.append(f"  {path}: weights {have[path]}, model {want[path]}")
  if wrong:
    more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    raise ValueError(
        f"init_from={config.init_from} does not fit size {config.size!r}:\n"
        + "\n".join(wrong[:20]) + more)
