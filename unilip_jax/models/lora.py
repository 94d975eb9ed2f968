"""LoRA: low-rank adapters of dense layers (arXiv 2106.09685), with rsLoRA's scale (arXiv 2312.03732).

A dense layer with adapters computes y = x W + b + ((dropout(x) A) · s) B. Its parameters hold, next to
`kernel`, the entry `lora`: {part: {a [in, r], b [r, out], scale [r]}}. A part is one of PyTorch's layers
where a layer here computes several at once (q, k and v of `qkv`), else "full". Scanned layers have their
layer axis first.

Why a branch, and not W + s A B before the forward pass: a merged weight would have a gradient of W's size,
which the branch never computes, W may stay int8, and dropout is possible. Why entries of the same tree: a
table of rules already decides for each leaf whether it trains, where it lives and what a checkpoint holds,
so that adapters are trained, sharded, saved and planned like any other parameter.

Why `scale` has an entry for each column of A: layers of one scan may then differ in rank (columns of A and
rows of B are padded with zeros, which keep zero gradients) and in alpha; and several adapters with weights
are one, concatenated along r.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.common import tree
from unilip_jax.ops import matmul, seeds

NAME = "lora"
FULL = "full"
MODULES = ("vision_tower", "mlp1", "llm", "connector", "projector", "dit")  # that adapters can change
_DROPOUT = "dropout"
# Name of a layer -> names of its parts, in the order of its outputs.
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up"), "kv": ("k", "v")}
_WHOLE = ("vision_tower/",)  # networks whose PyTorch layers are fused as they are here
_LEAF = re.compile(rf"(.*)/{NAME}/(\w+)/(a|b|scale)")
# Rows for optim/param_table.py: A and B train, scales do not.
PARAM_RULES = (
    (rf"/{NAME}/\w+/(a|b)$", {"train": True}),
    (rf"/{NAME}/\w+/scale$", {"train": False, "dtype": "float32"}))


def part_names(path: str) -> tuple[str, ...]:
  """Returns the parts of the dense layer at `path`, e.g. ("q", "k", "v"); (FULL,) if it has none."""
  fused = None if path.startswith(_WHOLE) else FUSED.get(path.split("/")[-1])
  return fused or (FULL,)


def spans(name: str | None, width: int, features: int) -> dict[str, tuple[int, int]]:
  """Returns {part: (first output, outputs)} of a dense layer.

  Args:
    name: last key of its path.
    width: of its input; the width of the part `q`, and what is left is divided equally.
    features: its outputs.
  """
  names = FUSED.get(name or "", ())
  if name == "qkv":
    sizes = (width, (features - width) // 2, (features - width) // 2)
  else:
    sizes = (features // max(1, len(names)),) * len(names)
  starts = np.cumsum((0, *sizes))
  return {FULL: (0, features)} | {n: (int(s), z) for n, s, z in zip(names, starts, sizes)}


def branch(
    x: jax.Array, adapters: Mapping[str, Any], name: str | None, features: int, dtype: Any) -> jax.Array:
  """Computes what adapters add to the output of a dense layer.

  Args:
    x: dtype[M, in].
    adapters: the entry `lora` of the layer.
    name: last key of the layer's path.
    features: outputs of the layer.
    dtype: of the computation.

  Returns:
    dtype[M, features].
  """
  if _DROPOUT in adapters:
    drop = adapters[_DROPOUT]
    keep = jax.random.bernoulli(drop["key"], 1 - drop["rate"], x.shape)
    x = jnp.where(keep, x / (1 - drop["rate"]).astype(dtype), jnp.zeros((), dtype))
  parts = {part: leaf for part, leaf in adapters.items() if part != _DROPOUT}
  joined = lambda key, axis: jnp.concatenate([leaf[key].astype(dtype) for leaf in parts.values()], axis)
  # One pass over x for all parts: alone, each would leave most of a matrix unit's columns empty.
  hidden = matmul.matmul(x, joined("a", 1)) * joined("scale", 0)[None]
  ranks = [leaf["a"].shape[1] for leaf in parts.values()]
  outputs = {part: matmul.matmul(h, leaf["b"].astype(dtype)) for (part, leaf), h in zip(
      parts.items(), jnp.split(hidden, np.cumsum(ranks)[:-1], axis=1))}
  where = spans(name, x.shape[1], features)
  total = outputs.pop(FULL, None)
  if outputs:
    split = jnp.concatenate(
        [outputs[part] if part in outputs else jnp.zeros((len(x), size), dtype)
         for part, (_, size) in where.items() if part != FULL], axis=1)
    total = split if total is None else total + split
  return total


# ---- the rule table


@dataclasses.dataclass(frozen=True)
class Target:
  """One part of a dense layer (of all layers of a scan) that has an adapter.

  Attributes:
    path: of the dense layer.
    part: of its outputs.
    lead: (layers,) of a scan, else ().
    width: of its input.
    size: outputs of the part.
  """

  path: str
  part: str
  lead: tuple[int, ...]
  width: int
  size: int

  @property
  def name(self) -> str:
    """What rows of the rule table match: the path, with the part if the layer has several."""
    return self.path if self.part == FULL else f"{self.path}/{self.part}"

  def leaf(self, key: str) -> str:
    """Returns the path of a, b or scale."""
    return f"{self.path}/{NAME}/{self.part}/{key}"


def all_targets(shapes: Mapping[str, Any]) -> list[Target]:
  """Lists every part of every dense layer of `shapes` ({module: nested dict}) that can have an adapter."""
  targets = []
  for path, leaf in tree.flatten(shapes).items():
    if path.split("/")[0] in MODULES and path.endswith("/kernel") and tree.unstacked_rank(path, leaf) == 2:
      dense, (*lead, width, features) = path.removesuffix("/kernel"), leaf.shape
      where = spans(dense.split("/")[-1], width, features)
      targets += [Target(dense, part, tuple(lead), width, where[part][1]) for part in part_names(dense)]
  return targets


def resolve(shapes: Mapping[str, Any], settings: Any) -> dict[Target, dict[str, float]]:
  """Applies the rule table config.lora.

  Args:
    shapes: {module: nested dict} of a model without adapters.
    settings: config.lora: targets, rank, alpha, rslora.

  Returns:
    {target: {"rank": int, "scale": float}}; the first row that matches a target decides about it.

  Raises:
    ValueError: for a row that matches no layer.
  """
  targets, result = all_targets(shapes), {}
  for pattern, columns in settings.targets:
    matches = [t for t in targets if re.search(pattern, t.name)]
    if not matches:
      raise ValueError(f"lora.targets: row {pattern!r} matches no dense layer; they are called "
                       f"{', '.join(t.name for t in targets[:3])}, …")
    rank, alpha = (columns.get(name, settings[name]) for name in ("rank", "alpha"))
    scale = alpha / (math.sqrt(rank) if settings.rslora else rank)
    for target in matches:
      result.setdefault(target, {"rank": rank, "scale": scale})
  return result


def init(shapes: Mapping[str, Any], settings: Any, seed: jax.Array) -> dict[str, Any]:
  """Samples the first adapters, which change no output: B is zero.

  A is uniform in ±1/√in (PEFT's default, "kaiming") or normal with deviation 1/r ("gaussian").

  Args:
    shapes: as of `resolve`.
    settings: config.lora.
    seed: words of the run's seed.

  Returns:
    nested dict of float32 leaves, to be merged with the model's parameters.
  """
  leaves: dict[str, jax.Array] = {}
  key = jax.random.fold_in(seeds.key(seed), 0x10AA)  # apart from the keys of weights and steps
  for i, (target, columns) in enumerate(resolve(shapes, settings).items()):
    rank, lead = columns["rank"], target.lead
    a = (*lead, target.width, rank)
    if settings.init == "gaussian":
      leaves[target.leaf("a")] = jax.random.normal(jax.random.fold_in(key, i), a) / rank
    else:
      leaves[target.leaf("a")] = jax.random.uniform(
          jax.random.fold_in(key, i), a, jnp.float32, -target.width**-0.5, target.width**-0.5)
    leaves[target.leaf("b")] = jnp.zeros((*lead, rank, target.size))
    leaves[target.leaf("scale")] = jnp.full((*lead, rank), columns["scale"], jnp.float32)
  return tree.unflatten(leaves)


def with_dropout(params: Mapping[str, Any], rate: float, key: jax.Array) -> dict[str, Any]:
  """Adds the dropout of a step to every dense layer with adapters.

  Calls of a layer with inputs of different shapes have different masks.

  Args:
    params: that hold adapters.
    rate: probability that an input of A is zero.
    key: of the step and micro-batch.
  """
  flat = tree.flatten(params)
  layers = {m[1]: leaf for path, leaf in flat.items() if (m := _LEAF.fullmatch(path)) and m[3] == "a"}
  for i, (path, a) in enumerate(layers.items()):
    lead = a.shape[:-2]
    flat[f"{path}/{NAME}/{_DROPOUT}/key"] = jax.random.split(jax.random.fold_in(key, i), lead)
    flat[f"{path}/{NAME}/{_DROPOUT}/rate"] = jnp.full(lead, rate, jnp.float32)
  return tree.unflatten(flat)


# ---- adapters as trees of their own


def is_adapter(path: str) -> bool:
  """Returns whether the leaf at `path` belongs to an adapter."""
  return _LEAF.fullmatch(path) is not None


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits parameters into (adapters, the rest)."""
  return tree.split(params, is_adapter)


def by_part(adapters: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
  """Returns {(path of the dense layer, part): {"a", "b", "scale"}}."""
  parts: dict[tuple[str, str], dict[str, Any]] = {}
  for path, leaf in tree.flatten(adapters).items():
    dense, part, key = _LEAF.fullmatch(path).groups()
    parts.setdefault((dense, part), {})[key] = leaf
  return parts


def combine(adapters: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, Any]:
  """Joins weighted adapters into one that adds the sum of what each adds."""
  grouped: dict[tuple[str, str], list[tuple[dict[str, Any], float]]] = {}
  for leaves, weight in adapters:
    for where, leaf in by_part(leaves).items():
      grouped.setdefault(where, []).append((leaf, weight))
  flat = {}
  for (dense, part), leaves in grouped.items():
    prefix = f"{dense}/{NAME}/{part}"
    flat[f"{prefix}/a"] = jnp.concatenate([leaf["a"] for leaf, _ in leaves], axis=-1)
    flat[f"{prefix}/b"] = jnp.concatenate([leaf["b"] for leaf, _ in leaves], axis=-2)
    flat[f"{prefix}/scale"] = jnp.concatenate([leaf["scale"] * weight for leaf, weight in leaves], axis=-1)
  return tree.unflatten(flat)


def merge(params: Mapping[str, Any], put: Callable[[Any], Any] = lambda x: x) -> dict[str, Any]:
  """Adds A · s · B to the kernels, in float32, and removes the adapters.

  Args:
    params: with adapters.
    put: applied to each changed kernel.

  Returns:
    the parameters without adapters; changed kernels keep their dtype.

  Raises:
    ValueError: for int8 kernels, which cannot take small changes.
  """
  adapters, base = split(params)
  flat = tree.flatten(base)
  for (dense, part), leaf in by_part(adapters).items():
    kernel = flat[f"{dense}/kernel"]
    if kernel.dtype == jnp.int8:
      raise ValueError(f"{dense} is int8, to which no adapter can be added; load the weights in bfloat16 "
                       "or float32, or use the adapter without merging")
    start, size = spans(dense.split("/")[-1], *kernel.shape[-2:])[part]
    a, b, scale = (jnp.asarray(leaf[key], jnp.float32) for key in ("a", "b", "scale"))
    change = jnp.matmul(a * scale[..., None, :], b, precision="highest")
    merged = jnp.asarray(kernel).astype(jnp.float32).at[..., start:start + size].add(change)
    flat[f"{dense}/kernel"] = put(merged.astype(kernel.dtype))
  return tree.unflatten(flat)
