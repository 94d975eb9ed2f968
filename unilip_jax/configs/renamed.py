"""Fields and values of configs that were renamed: named on the command line, translated in saved files."""

from collections.abc import Mapping
from typing import Any

# {old field: new field, or "" for one that is gone}
FIELDS = {
    "accumulate": "grad_accum_steps",
    "data.blocks_dir": "data.render_dir",
    "generate.draws": "generate.noise_samples_per_image",
    "generate.factor": "generate.latent_scale",
    "generate.reader": "",
    "generate.shift": "generate.timestep_shift",
    "mesh.frozen": "mesh.frozen_sharding",
    "text.drop": "text.prompt_dropout",
    "text.image_slots": "",
}
_VALUES = {
    "mesh.frozen_sharding": {"split": "fsdp", "whole": "replicated"},
    "data.crop": {"squash": "stretch"},
    "text.tokenizer": {"blocks": "shapes"},
}
_GONE = {
    "generate.reader": "the DiT is pretrained without an LLM by config.task='shapes_clauses'",
    "text.image_slots": "it follows from image_size",
}


def message(old: str) -> str:
  """What to use instead of an old field."""
  return f"it is called --config.{FIELDS[old]} now" if FIELDS[old] else f"it is gone: {_GONE[old]}"


def translate(saved: Mapping[str, Any]) -> dict[str, Any]:
  """A saved config (config.json) with today's names; files of today come back unchanged."""
  config = {k: dict(v) if isinstance(v, Mapping) else v for k, v in saved.items()}
  for old, new in FIELDS.items():
    section, _, name = old.rpartition(".")
    holder = config.get(section, {}) if section else config
    if name not in holder:
      continue
    value = holder.pop(name)
    if new:
      _set(config, new, value)
  for field, values in _VALUES.items():
    section, _, name = field.rpartition(".")
    holder = config.get(section, {}) if section else config
    if name in holder:
      holder[name] = values.get(holder[name], holder[name])
  return config


def _set(config: dict[str, Any], field: str, value: Any) -> None:
  section, _, name = field.rpartition(".")
  (config.setdefault(section, {}) if section else config)[name] = value
