"""Describes a file or folder of weights: format, dimensions, parameter counts, what is missing for what."""

from collections.abc import Mapping
import math
from typing import Any

from unilip_jax.convert import engine, formats, hub, io, modules, reading
from unilip_jax.models import presets, tokenizer, unilip
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources
from unilip_jax.weights import stored as stored_lib

# (use, modules that it needs); the configs list what a stage initialises itself.
_USES = (
    ("stage1", ("vision_tower", "mlp1", "decoder")),
    ("stage2, stage448", tokenizer.MODULES),
    ("gen1", ("vision_tower", "mlp1", "latent_head", "decoder", "llm", "dit", "encoder")),
    ("gen2, gen3", ("vision_tower", "mlp1", "latent_head", "decoder", "llm", "dit")),
    ("reconstruct", tokenizer.MODULES),
    ("chat", unilip.UNDERSTANDING),
    ("generate, edit", unilip.MODULES))

_RELEASED_VOCABULARY = 151_674  # of InternVL3; the presets have UniLIP's
# How weights started, and what they do: neither changes their number.
_NO_SHAPE = ("layer_scale_init", "init_std", "positions")


def describe(location: str, options: reading.Options = reading.DEFAULTS) -> list[str]:
  """Returns lines for the user; reads names and shapes only.

  Args:
    location: imported weights, a run's workdir or checkpoint, "<prefix>:<name>" of a plug-in, or PyTorch
      weights as of `io.find`.
    options: what the files do not contain.

  Raises:
    ValueError: for anything unreadable or of no known format.
  """
  if not location.startswith(hub.PREFIX):
    try:
      return _describe_stored(location, sources.open_weights(location))
    except FileNotFoundError:
      pass  # PyTorch's files, then
  lines, readings, dims = [], [], {}
  for source in io.find(location):
    row, result = formats.read_source(source, options)
    lines += [f"{source.path}: {row.name}", *(f"  {note}" for note in formats.notes(source, result))]
    readings.append((source, result))
    dims |= {part.module: part.dims or dims.get(part.module, {}) for part in result.parts}
  for source, result in readings:
    if len(readings) > 1:
      lines.append(f"{source.path}:")
    lines += _tensors(source, result, dims.get("llm"))
  return lines + _enough(dims)


def _tensors(source: io.Source, result: reading.Reading, llm: dict[str, Any] | None) -> list[str]:
  """Returns the lines about modules, missing, skipped and unknown tensors of one source."""
  lines, shapes = [], source.tensors.shapes
  for part in result.parts:
    names = engine.torch_names(part.rules)
    count = sum(math.prod(shapes[name]) for name in names if name in shapes)
    lines += _module(part.module, part.dims, count, llm)
    lines += [f"    missing: {name}" for name in names if name not in shapes][:8]
  rules = [rule for part in result.parts for rule in part.rules]
  skipped = engine.unused(shapes, rules, result.skip)
  lines += [f"  not read: {len(names)} tensors ({names[0]}, …): {reason}"
            for reason, names in skipped.items()]
  known = {*engine.torch_names(rules), *(name for names in skipped.values() for name in names)}
  return lines + [f"  unknown: {name} {shape}" for name, shape in shapes.items() if name not in known]


def _describe_stored(location: str, stored: stored_lib.Stored) -> list[str]:
  """Returns the lines about imported weights or a run's."""
  model, dims = stored.model, dims_lib.module_dims(stored.model)
  if "stage" in model or "source" not in model:
    lines = [f"{location}: weights of a run"]
  else:
    lines = [f"{location}: imported weights", *(f"  from {source}" for source in model["source"])]
  by_module: dict[str, dict[str, Any]] = {}
  for path, leaf in stored.shapes.items():
    module, _, below = path.partition("/")
    by_module.setdefault(module, {})[below] = leaf
  for module, leaves in by_module.items():
    known = dims.get(module, {})
    if known:
      modules.validate(module, known)
    count = modules.count(module, known, {below: leaf.shape for below, leaf in leaves.items()})
    lines += _module(module, known, count, dims.get("llm"))
    if module in model.get("dtypes", {}):
      dtypes = sorted({leaf.dtype.name for leaf in leaves.values()})
      lines.append(f"    {model['dtypes'][module]} in the source, {', '.join(dtypes)} here")
  return lines + _enough(by_module)


def _module(module: str, dims: dict[str, Any], count: int, llm: dict[str, Any] | None) -> list[str]:
  published = published_count(module, dims, llm) if dims else None
  note = ""
  if published:
    size, expected = published
    note = f" (published {size}: {expected:,}{', equal' if count == expected else ', DIFFERS'})"
  lines = [f"  {module}: {count:,} parameters{note}"]
  if dims:
    lines.append("    " + ", ".join(f"{k}={_short(v)}" for k, v in dims.items()))
  return lines


def _enough(names: Mapping[str, Any]) -> list[str]:
  """Returns the uses for which these modules are enough, and what is missing for others.

  Loss networks alone give no lines.
  """
  if not any(name in names for name in (*unilip.MODULES, "encoder")):
    return []
  lines = ["enough for:"]
  for use, needs in _USES:
    absent = [name for name in needs if name not in names]
    lines.append(f"  {use}: {'enough' if not absent else 'missing ' + ', '.join(absent)}")
  return lines


def _short(value: Any) -> str:
  """Returns equal entries once: (silu, silu, silu) -> 3×silu."""
  if isinstance(value, list | tuple) and len(value) > 1 and len({str(v) for v in value}) == 1:
    return f"{len(value)}×{value[0]}"
  return str(value).replace(" ", "") if isinstance(value, list | tuple) else str(value)


def published_count(
    module: str, dims: Mapping[str, Any], llm: Mapping[str, Any] | None = None
) -> tuple[str, int] | None:
  """Returns (size, parameters) of the published network with these dimensions; None for others.

  Args:
    module: its name.
    dims: its dimensions, JSON-ready.
    llm: the language model's, on which the connector's size depends.
  """
  for size in ("1b", "3b"):
    by_module = preset_dims(size)
    preset = by_module.get(module)
    if module == "llm" and dims["vocab"] == _RELEASED_VOCABULARY:
      preset = preset | {"vocab": _RELEASED_VOCABULARY}
    other_llm = module == "connector" and (llm is None or llm["width"] != by_module["llm"]["width"])
    if preset is not None and not other_llm and _comparable(preset) == _comparable(dims):
      shapes = modules.shapes(module, preset, by_module["llm"])
      return size, modules.count(module, preset, {path: leaf.shape for path, leaf in shapes.items()})
  return None


def preset_dims(size: str) -> dict[str, Any]:
  """Returns {module: JSON-ready dimensions} of a size of models/presets.py."""
  preset = presets.get(size)
  width = preset.llm.width
  return dims_lib.split_tokenizer(preset.tokenizer) | {
      "encoder": presets.to_json(preset.dcae_encoder), "lpips": presets.to_json(preset.vgg),
      "convnext": presets.to_json(preset.convnext), "llm": presets.to_json(preset.llm),
      "connector": presets.to_json(preset.connector), "dit": presets.to_json(preset.dit),
      "queries": {"count": preset.connector.queries, "width": width},
      "projector": {"in_width": width, "width": preset.dit.caption_width}}


def _comparable(value: Any) -> Any:
  """Returns dimensions with tuples as lists, without what leaves no trace in shapes."""
  if isinstance(value, Mapping):
    return {k: _comparable(v) for k, v in value.items() if k not in _NO_SHAPE}
  return [_comparable(v) for v in value] if isinstance(value, list | tuple) else value
