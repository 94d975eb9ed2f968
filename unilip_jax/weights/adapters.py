"""Opens adapters of every kind: a run that trained them, or a folder or file of PEFT or diffusers.

Adapters are trees of the leaves that models/lora.py describes. PyTorch's layouts are read by
convert/lora_files.py, which is found by name: this room imports no PyTorch layout.
"""

from collections.abc import Mapping
import math
import os
from typing import Any

import jax
import numpy as np

from unilip_jax.common import errors, paths, registry, tree
from unilip_jax.models import lora
from unilip_jax.weights import sources

registry.register("adapter", "pytorch", "unilip_jax.convert.lora_files:read")


def checked_text(text: Any) -> str:
  """Returns a text.

  Raises:
    ValueError: for something else.
  """
  if not isinstance(text, str):
    raise ValueError(f"adapter {text!r}: give PATH or PATH:WEIGHT in quotes")
  return text


def parse(text: str) -> tuple[str, float]:
  """Splits "PATH" or "PATH:WEIGHT" into (path, weight); the weight of a path alone is 1.

  A text that exists as written is a path.

  Raises:
    ValueError: for a weight that is not finite, an empty path, or something else than a text.
  """
  path, colon, weight = checked_text(text).rpartition(":")
  if colon and _is_there(text):
    return text, 1.0
  try:
    value = float(weight) if colon else 1.0
  except ValueError:  # a path with a colon of its own
    path, value = text, 1.0
  if not colon:
    path = text
  if not path or not math.isfinite(value):
    raise ValueError(f"{text!r}: give PATH or PATH:WEIGHT, e.g. runs/lora:0.7")
  return path, value


def _is_there(text: str) -> bool:
  try:
    return os.path.lexists(paths.expand(text, "adapter"))
  except paths.PathError:  # of a path with its weight; `check_exists` names what is wrong with the path
    return False


def check_exists(path: str) -> None:
  """Checks the form of a path to adapters and that something is there, before weights are read.

  Raises:
    FileNotFoundError: if there is nothing.
    ValueError: for a path that cannot be used.
  """
  if not paths.is_remote(path) and not paths.path(path, "adapter").exists():
    before, _, weight = path.rpartition(":")
    if before and _is_there(before):
      raise ValueError(
          f"{path!r}: weight {weight!r} is no number; give PATH or PATH:WEIGHT, e.g. {before}:0.7")
    raise FileNotFoundError(f"the adapter {path} does not exist")


def open_adapter(
    path: str, dims: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Reads adapters.

  Args:
    path: a run's workdir or `workdir/checkpoints/<step>`, a folder of PEFT or diffusers, or its
      .safetensors file.
    dims: {module: dimensions} of the model that they are for.
    shapes: {path: shape} of its parameters without adapters.

  Returns:
    nested dict of float32 arrays in memory.

  Raises:
    FileNotFoundError: if there is nothing.
    ValueError: if there are no adapters, or they do not fit the model, with each name.
  """
  place = paths.path(path, "adapter")
  if (place / sources.STEPS).exists() or place.parent.name == sources.STEPS:
    adapters = _of_run(path)
  else:
    adapters = registry.find("adapter", "pytorch")(str(place), dims)
  _check(adapters, shapes, path)
  return adapters


def _of_run(path: str) -> dict[str, Any]:
  """Reads the adapters of a run; of its EMA where one was kept."""
  stored = sources.open_weights(path)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
  wanted = {p: jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=here)
            for p, leaf in stored.shapes.items() if lora.is_adapter(p)}
  if not wanted:
    raise ValueError(f"{path} is a run without adapters: it trained the weights themselves; load it as a "
                     "checkpoint")
  return tree.unflatten({p: np.asarray(x) for p, x in stored.restore(wanted).items()})


def _check(adapters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
  """Compares adapters with the kernels that they change.

  Raises:
    ValueError: listing each path with both shapes.
  """
  expected, given = {}, {}
  for (dense, part), leaf in lora.by_part(adapters).items():
    rank, kernel = leaf["a"].shape[-1], shapes.get(f"{dense}/kernel")
    name = f"{dense}/{part}"
    given[name] = (*leaf["a"].shape[:-1], leaf["b"].shape[-1])
    if kernel is not None:
      size = lora.spans(dense.split("/")[-1], *kernel[-2:])[part][1]
      expected[name] = (*kernel[:-1], size)
    for key, shape in (("b", leaf["b"].shape[:-1]), ("scale", leaf["scale"].shape)):
      if shape != (*leaf["a"].shape[:-2], rank):
        raise ValueError(f"{origin}: {name}: {key} {leaf[key].shape} does not fit a {leaf['a'].shape}")
  errors.check_shapes(given, expected, f"{origin} is an adapter of another model", source="adapter")
