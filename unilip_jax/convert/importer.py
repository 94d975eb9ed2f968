"""Foreign weights -> a folder of ours: read, convert, check against the networks, write whole."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from unilip_jax import tree, weights
from unilip_jax.convert import kinds, modules, sources
from unilip_jax.convert import rules as engine


@dataclasses.dataclass(frozen=True)
class Imported:
  """What an import took.

  Attributes:
    modules: {name: nested dict of float32 arrays}.
    dims: {name: JSON-ready dimensions}.
    dtypes: {name: dtype in the source}, for an export that restores it.
    log: lines for the user, skipped tensors and assumptions among them.
  """

  modules: dict[str, Any]
  dims: dict[str, Any]
  dtypes: dict[str, str]
  log: list[str]


def import_weights(
    locations: Sequence[str],
    out: str,
    *,
    vit_heads: int | None = None,
    overwrite: bool = False,
) -> Imported:
  """Converts `locations` into one folder of weights at `out`.

  Args:
    locations: as of `sources.find`.
    out: local or gs:// path.
    vit_heads: the ViT's attention heads, where neither a config nor a preset tells them.
    overwrite: replace a folder of weights that stands at `out`.

  Raises:
    ValueError: for anything unreadable, unknown or not fitting; nothing is written then.
  """
  imported = convert(locations, vit_heads=vit_heads)
  weights.save_weights(
      out, imported.modules, imported.dims,
      {"source": list(locations), "dtypes": imported.dtypes}, overwrite=overwrite)
  return imported


def convert(locations: Sequence[str], *, vit_heads: int | None = None) -> Imported:
  """Reads and converts; arguments and errors as of `import_weights`."""
  flat: dict[str, np.ndarray] = {}
  dims: dict[str, Any] = {}
  dtypes: dict[str, set[str]] = {}
  origin: dict[str, str] = {}
  log: list[str] = []
  for source in [s for location in locations for s in sources.find(location)]:
    kind, reading = kinds.read_source(source, vit_heads)
    log += [f"{source.path}: {kind.name}", *(f"  {note}" for note in reading.notes)]
    for part in reading.parts:
      if part.dims and dims.get(part.module):
        raise engine.ConversionError(
            f"doubled: {part.module} comes from {origin[part.module]} and from {source.path}; "
            "leave one out")
      dims[part.module] = part.dims or dims.get(part.module, {})
      origin[part.module] = str(source.path)
    table = [rule for part in reading.parts for rule in part.rules]
    arrays = _converted(source, reading, table)
    if again := flat.keys() & arrays.keys():
      raise engine.ConversionError(f"doubled: {source.path} holds {sorted(again)[:4]} once more")
    flat.update(arrays)
    for part in reading.parts:
      dtypes.setdefault(part.module, set()).update(
          source.tensors.dtypes[name].name for name in engine.torch_names(part.rules))
    for reason, names in engine.unused(source.tensors, table, reading.skip).items():
      log.append(f"  skipped {len(names)} tensors ({names[0]}, …): {reason}")
  _refuse_incomplete(flat, dims, origin)
  return Imported(
      tree.unflatten(flat), dims,
      # float32 holds every dtype that is read, so it is right for a mixture.
      {m: next(iter(d)) if len(d) == 1 else "float32" for m, d in dtypes.items()}, log)


def _converted(source, reading, table) -> dict[str, np.ndarray]:
  """{path: array} of one source, checked against the shapes of the networks."""
  made = set(engine.paths(table))
  expected = {}
  for part in reading.parts:
    if part.dims:
      expected.update({f"{part.module}/{path}": s
                       for path, s in modules.shapes(part.module, part.dims).items()})
    else:  # a share whose dimensions stand in another source; checked when all are there
      expected = None
      break
  if expected is not None:
    expected = {path: s for path, s in expected.items() if path in made}
  try:
    return tree.flatten(engine.from_torch(source.tensors, table, expected, skip=reading.skip))
  except engine.ConversionError as error:
    raise engine.ConversionError(f"{source.path}:\n{error}") from error


def _refuse_incomplete(flat, dims, origin) -> None:
  """Raises ConversionError where a module lacks arrays that its network has."""
  problems = []
  for module, module_dims in dims.items():
    if not module_dims:
      problems.append(f"{module}: {origin[module]} is only a part of it; "
                      f"{_COMPANION.get(module, 'give the other source too')}")
      continue
    wanted = {f"{module}/{p}": tuple(s.shape)
              for p, s in modules.shapes(module, module_dims).items()}
    for path, shape in wanted.items():
      if path not in flat:
        problems.append(f"{path} {shape}: no source has it; "
                        f"{_COMPANION.get(module, 'the source is incomplete')}")
      elif flat[path].shape != shape:
        problems.append(f"{path}: source {flat[path].shape}, model {shape}")
  if problems:
    more = f"\nand {len(problems) - 20} more" if len(problems) > 20 else ""
    raise engine.ConversionError("incomplete:\n" + "\n".join(problems[:20]) + more)


_COMPANION = {"lpips": "it needs torchvision's vgg16 and LPIPS' heads (vgg.pth): put both into one "
                       "folder, or give --source twice"}
