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
import numpy as np

from unilip_jax import checkpoint, sharding, tree
from unilip_jax import state as state_lib


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
  """Shapes, dtypes and shardings of the task's state, without making an array."""
  shapes = jax.eval_shape(
      lambda: task.make_state(task.init_modules(jax.random.key(0)), jnp.uint32(0)))
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
  """Weights by module: from `init_from` where it has them, random elsewhere."""
  abstract = jax.eval_shape(task.init_modules, jax.random.key(0))
  shardings = sharding.tree_shardings(abstract, mesh, config.mesh.min_shard_size)
  loaded: dict[str, Any] = {}
  origins: dict[str, str] = {}
  sources = [s.strip() for s in config.init_from.split(",") if s.strip()]
  required = task.required_modules()
  if config.loss.perceptual_weights and "loss.perceptual_weights" in required.values():
    sources.append(config.loss.perceptual_weights)
  for source in sources:
    found, _ = checkpoint.load_weights(source)
    loaded.update(found)
    origins.update(dict.fromkeys(found, source))
  loaded = {name: module for name, module in task.adopt(loaded).items() if name in abstract}
  for name, field in required.items():
    if name not in loaded:
      value = functools.reduce(lambda node, key: node[key], field.split("."), config)
      remedy = " or set the loss weight to 0" if field.startswith("loss.") else ""
      raise FileNotFoundError(
          f"{config.stage} needs the weights of {name}, which {field}={value!r} lacks; import them "
          f"(docs/weights.md) and name their folder there{remedy}")
  for name in abstract:
    logging.info("weights of %s: %s", name, origins.get(name) or (
        "copied from loaded weights" if name in loaded else "random"))
  # One seed gives one set of random weights on every mesh; loaded ones replace them.
  initial = jax.jit(task.init_modules, out_shardings=shardings)(jax.random.key(config.seed))
  flat, flat_shardings = tree.flatten(initial), tree.flatten(shardings)
  for path, value in _fitted(loaded, abstract, config).items():
    flat[path] = sharding.put(value, flat_shardings[path])
  return tree.unflatten(flat), ", ".join(sources) or "random weights"


def _fitted(loaded: Mapping[str, Any], abstract: Mapping[str, Any], config) -> dict[str, np.ndarray]:
  """{path: float32 array} of the loaded weights, checked against the model's shapes.

  Raises:
    ValueError: listing each missing, unknown or wrong-shaped path with both shapes.
  """
  want = {p: tuple(s.shape) for p, s in tree.flatten(abstract).items()
          if p.split("/")[0] in loaded}
  have = {p: np.asarray(v) for p, v in tree.flatten(loaded).items()}
  wrong = []
  for path in sorted(want.keys() | have.keys()):
    if path not in have:
      wrong.append(f"  {path}: absent in the weights, model {want[path]}")
    elif path not in want:
      wrong.append(f"  {path}: weights {have[path].shape}, absent in the model")
    elif have[path].shape != want[path]:
      wrong.append(f"  {path}: weights {have[path].shape}, model {want[path]}")
  if wrong:
    more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    raise ValueError(
        f"init_from={config.init_from} does not fit size {config.size!r}:\n"
        + "\n".join(wrong[:20]) + more)
  return {path: np.asarray(value, np.float32) for path, value in have.items()}
