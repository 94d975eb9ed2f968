"""Describes a loaded model in a few lines: where it comes from, its size, abilities and memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from unilip_jax.common import json_file
from unilip_jax.models import tokenizer, unilip
from unilip_jax.weights import language, orbax_io, sources

# What a model can do: {method: modules that it needs}.
ABILITIES: Mapping[str, Sequence[str]] = {
    "encode": tokenizer.MODULES[:3], "reconstruct": tokenizer.MODULES, "chat": unilip.UNDERSTANDING,
    "generate": unilip.MODULES, "edit": unilip.MODULES}


def stage_of(path: str, model: Mapping[str, Any]) -> str:
  """Names the stage and size that weights were trained by, or what they were imported from.

  Args:
    path: of the weights, as for sources.open_weights.
    model: model.json of the weights (Stored.model).

  Returns:
    E.g. "stage gen3, size tiny" or "imported from DIR"; "" if nothing tells.
  """
  if "origin" in model:
    return _of_config(model["origin"].get("config", {}))
  if "source" in model:
    return f"imported from {', '.join(map(str, model['source']))}"
  file = orbax_io.absolute(sources.split_step(path)[0]) / language.CONFIG
  if not file.exists():
    return ""
  return _of_config(json_file.read(
      file, remedy="start the run's training command again: it writes the file"))


def describe(
    name: str, stage: str, params: Mapping[str, Any], *, image_size: int, dtype: str, batch_size: int,
    has_text: bool) -> str:
  """Returns what `print(model)` shows.

  Args:
    name: path of the weights; "" for parameters that were passed.
    stage: see `stage_of`.
    params: by module name, on the device.
    image_size: pixels per side.
    dtype: of the computation.
    batch_size: examples that run at once.
    has_text: whether there is a tokenizer of prompts.
  """
  leaves = jax.tree.leaves(params)
  size = sum(x.nbytes for x in leaves)
  texts = () if has_text else ("chat", "generate", "edit")
  able = [ability for ability, modules in ABILITIES.items()
          if ability not in texts and set(modules) <= set(params)]
  device = ", ".join(sorted({d.device_kind for leaf in leaves for d in leaf.devices()}))
  integers = " with int8 matrices" if any(x.dtype == "int8" for x in leaves) else ""
  return (
      f"UniLIP{f' of {name}' if name else ''}{f' ({stage})' if stage else ''}\n"
      f"  parameters: {_count(sum(x.size for x in leaves))}; images: {image_size}×{image_size} pixels\n"
      f"  abilities: {', '.join(able)}\n"
      f"  memory: {_bytes(size)} of weights in {dtype}{integers} on {device}; batch_size: {batch_size}")


def _of_config(config: Mapping[str, Any]) -> str:
  words = [f"{field} {config[field]}" for field in ("stage", "size") if config.get(field)]
  return ", ".join(words)


def _count(number: int) -> str:
  for unit, name in ((1e9, "billion"), (1e6, "million")):
    if number >= unit:
      return f"{number / unit:.3g} {name}"
  return f"{number:,}"


def _bytes(number: int) -> str:
  return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"
