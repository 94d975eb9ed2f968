"""What a file or folder of weights holds: kind, dimensions, parameter counts, what is missing."""

import math
from typing import Any

from etils import epath

from unilip_jax import checkpoint, orbax_io, weights
from unilip_jax.convert import kinds, modules, sources
from unilip_jax.convert import rules as engine


def describe(location: str, *, vit_heads: int | None = None) -> list[str]:
  """Lines for the user; reads names and shapes only, but for a run's checkpoint.

  Args:
    location: imported weights, a run's workdir, or foreign weights as of `sources.find`.
    vit_heads: the ViT's attention heads, where neither a config nor a preset tells them.

  Raises:
    ValueError: for anything unreadable or of no known kind.
  """
  folder = epath.Path(location).expanduser() if not location.startswith("hf://") else None
  if folder is not None and (folder / "model.json").exists():
    return _ours(location, folder)
  if folder is not None and folder.parent.name == "checkpoints":
    return _run(location)
  lines, held = [], {}
  for source in sources.find(location):
    kind, reading = kinds.read_source(source, vit_heads)
    lines += [f"{source.path}: {kind.name}", *(f"  {note}" for note in reading.notes)]
    for part in reading.parts:
      names = engine.torch_names(part.rules)
      absent = [name for name in names if name not in source.tensors]
      count = sum(math.prod(source.tensors.shapes[n]) for n in names if n in source.tensors)
      lines += _module(part.module, part.dims, count)
      lines += [f"    missing: {name}" for name in absent[:8]]
      held[part.module] = part.dims
    table = [rule for part in reading.parts for rule in part.rules]
    for reason, names in engine.unused(source.tensors, table, reading.skip).items():
      lines.append(f"  not read: {len(names)} tensors ({names[0]}, …): {reason}")
    known = {*engine.torch_names(table), *(
        n for group in engine.unused(source.tensors, table, reading.skip).values() for n in group)}
    lines += [f"  unknown: {name} {source.tensors.shapes[name]}"
              for name in source.tensors if name not in known]
  return lines + _missing(held)


def _ours(location: str, folder: epath.Path) -> list[str]:
  if (folder / "checkpoints").exists():
    return _run(location)
  model = weights.read_model(folder)
  counts: dict[str, int] = {}
  for path, shape in weights.saved_shapes(folder).items():
    module = path.split("/")[0]
    counts[module] = counts.get(module, 0) + math.prod(shape)
  lines = [f"{location}: imported weights"]
  lines += [f"  from {source}" for source in model.get("source", ())]
  held = weights.module_dims(model)
  for module, count in counts.items():
    lines += _module(module, held[module], count)
    if module in model.get("dtypes", {}):
      lines.append(f"    {model['dtypes'][module]} in the source, float32 here")
  return lines + _missing(held)


def _run(location: str) -> list[str]:
  arrays, model = checkpoint.load_weights(location)
  dims = weights.module_dims(model)
  lines = [f"{location}: weights of a run (stage {model.get('stage', 'not recorded')})"]
  for module, array_tree in arrays.items():
    sizes = orbax_io.leaf_shapes(array_tree).values()
    lines += _module(module, dims.get(module, {}), sum(math.prod(s) for s in sizes))
  return lines + _missing(arrays)


def _module(module: str, dims: dict[str, Any], count: int) -> list[str]:
  published = modules.published_count(module, dims) if dims else None
  note = ""
  if published:
    size, wanted = published
    note = f" (published {size}: {wanted:,}{', equal' if count == wanted else ', DIFFERS'})"
  lines = [f"  {module}: {count:,} parameters{note}"]
  if dims:
    lines.append("    " + ", ".join(f"{k}={_short(v)}" for k, v in dims.items()))
  return lines


def _missing(held: Any) -> list[str]:
  absent = [name for name in modules.TOKENIZER if name not in held]
  if not absent:
    return ["whole tokenizer: can reconstruct, and can be exported as .pth"]
  if len(absent) == len(modules.TOKENIZER):
    return []
  return [f"no whole tokenizer: {', '.join(absent)} missing"]


def _short(value: Any) -> str:
  """Equal entries once: (silu, silu, silu) -> 3×silu."""
  if isinstance(value, list | tuple) and len(value) > 1 and len({str(v) for v in value}) == 1:
    return f"{len(value)}×{value[0]}"
  return str(value).replace(" ", "") if isinstance(value, list | tuple) else str(value)
