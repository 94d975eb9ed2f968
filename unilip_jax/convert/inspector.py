"""What a file or folder of weights holds: kinds, dimensions, parameter counts, what is missing for what."""

import math
from typing import Any

from unilip_jax.convert import hub, kinds, modules, sources
from unilip_jax.convert import rules as engine
from unilip_jax.models import tokenizer, unilip
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources as weight_sources

# (what can be done, modules that it needs); the configs say what else a stage makes itself.
_USES = (
    ("stage1", ("vision_tower", "mlp1", "decoder")),
    ("stage2, stage448", tokenizer.MODULES),
    ("gen1", ("vision_tower", "mlp1", "latent_head", "decoder", "llm", "dit", "encoder")),
    ("gen2, gen3", ("vision_tower", "mlp1", "latent_head", "decoder", "llm", "dit")),
    ("reconstruct", tokenizer.MODULES),
    ("chat", unilip.UNDERSTANDING),
    ("generate, edit", unilip.MODULES))


def describe(location: str, options: sources.Options | None = None) -> list[str]:
  """Lines for the user; reads names and shapes only.

  Args:
    location: imported weights, a run's workdir or checkpoint, "shapes:<name>", or foreign weights as of
      `sources.find`.
    options: what the files do not tell.

  Raises:
    ValueError: for anything unreadable or of no known kind.
  """
  if not location.startswith(hub.PREFIX) and _is_ours(location):
    return _ours(location)
  lines, held, shown = [], {}, []
  for source in sources.find(location):
    kind, reading = kinds.read_source(source, options or sources.Options())
    lines += [f"{source.path}: {kind.name}", *(f"  {note}" for note in reading.notes)]
    shown.append((source, reading))
    held |= {part.module: part.dims or held.get(part.module, {}) for part in reading.parts}
  for source, reading in shown:
    if len(shown) > 1:
      lines.append(f"{source.path}:")
    for part in reading.parts:
      names = engine.torch_names(part.rules)
      count = sum(math.prod(source.tensors.shapes[n]) for n in names if n in source.tensors)
      lines += _module(part.module, part.dims, count, held.get("llm"))
      absent = [name for name in names if name not in source.tensors]
      lines += [f"    missing: {name}" for name in absent[:8]]
    table = [rule for part in reading.parts for rule in part.rules]
    skipped = engine.unused(source.tensors, table, reading.skip)
    for reason, names in skipped.items():
      lines.append(f"  not read: {len(names)} tensors ({names[0]}, …): {reason}")
    known = {*engine.torch_names(table), *(n for group in skipped.values() for n in group)}
    lines += [f"  unknown: {name} {source.tensors.shapes[name]}"
              for name in source.tensors if name not in known]
  return lines + _enough(held)


def _is_ours(location: str) -> bool:
  try:
    weight_sources.open_weights(location)
  except FileNotFoundError:
    return False
  return True


def _ours(location: str) -> list[str]:
  stored = weight_sources.open_weights(location)
  model, dims = stored.model, dims_lib.module_dims(stored.model)
  if "stage" in model or "source" not in model:
    lines = [f"{location}: weights of a run"]
  else:
    lines = [f"{location}: imported weights", *(f"  from {source}" for source in model["source"])]
  by_module: dict[str, dict[str, tuple[int, ...]]] = {}
  for path, leaf in stored.shapes.items():
    module, _, below = path.partition("/")
    by_module.setdefault(module, {})[below] = leaf.shape
  for module, shapes in by_module.items():
    known = dims.get(module, {})
    if known:
      modules.validate(module, known)
    lines += _module(module, known, modules.count(module, known, shapes), dims.get("llm"))
    if module in model.get("dtypes", {}):
      here = {leaf.dtype.name for path, leaf in stored.shapes.items()
              if path.startswith(f"{module}/")}
      lines.append(f"    {model['dtypes'][module]} in the source, {', '.join(sorted(here))} here")
  return lines + _enough(by_module)


def _module(module: str, dims: dict[str, Any], count: int, llm: dict[str, Any] | None) -> list[str]:
  published = modules.published_count(module, dims, llm) if dims else None
  note = ""
  if published:
    size, wanted = published
    note = f" (published {size}: {wanted:,}{', equal' if count == wanted else ', DIFFERS'})"
  lines = [f"  {module}: {count:,} parameters{note}"]
  if dims:
    lines.append("    " + ", ".join(f"{k}={_short(v)}" for k, v in dims.items()))
  return lines


def _enough(held: Any) -> list[str]:
  """What these weights are enough for, and what else is missing; nothing for loss networks."""
  if not any(name in held for name in (*unilip.MODULES, "encoder")):
    return []
  lines = []
  for use, needs in _USES:
    absent = [name for name in needs if name not in held]
    lines.append(f"  {use}: {'enough' if not absent else 'missing ' + ', '.join(absent)}")
  return ["enough for:", *lines]


def _short(value: Any) -> str:
  """Equal entries once: (silu, silu, silu) -> 3×silu."""
  if isinstance(value, list | tuple) and len(value) > 1 and len({str(v) for v in value}) == 1:
    return f"{len(value)}×{value[0]}"
  return str(value).replace(" ", "") if isinstance(value, list | tuple) else str(value)
