"""Foreign weights -> a folder of ours: read, convert, check against the networks, write whole.

All names are compared before a tensor is read; then one module after the other is read, checked and
written, so that memory holds one module. Of a module that several sources hold, the last one's is taken,
as in `config.init_from`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from unilip_jax.common import tree
from unilip_jax.convert import kinds, language, modules, sources
from unilip_jax.convert import rules as engine
from unilip_jax.models import unilip
from unilip_jax.weights import folder as folder_lib

# What each kind of component is asked for, in the order in which later ones win.
ROLES = {
    "mllm": unilip.UNDERSTANDING,
    "dit": ("dit",),
    "vae": ("encoder", "decoder"),
    "unilip": unilip.MODULES,
}
DTYPES = ("source", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Location:
  """Something to read; `role` is a key of ROLES or None, which takes all that is there."""

  place: str
  role: str | None = None


@dataclasses.dataclass(frozen=True)
class _Share:
  """A module, or a share of it, within one source."""

  source: sources.Source
  part: sources.Part


@dataclasses.dataclass(frozen=True)
class Plan:
  """What an import will take; nothing but headers has been read.

  Attributes:
    dims: {module: JSON-ready dimensions}, in the order of writing.
    dtypes: {module: dtype in the source}, float32 where a source mixes some.
    log: lines for the user: skipped tensors, assumptions, and which source wins.
    generate: what sampling needs to know of a whole UniLIP, or None.
    tokenizer: tokenizer.json of the language model's source, or None.
  """

  shares: Mapping[str, list[_Share]]
  dims: dict[str, Any]
  dtypes: dict[str, str]
  log: list[str]
  generate: Mapping[str, Any] | None
  tokenizer: str | None

  def shapes(self, module: str) -> dict[str, Any]:
    """{path below the module: shape} that its network has."""
    return modules.shapes(module, self.dims[module], self.dims.get("llm"))

  def read(self, module: str, dtype: str = "float32") -> dict[str, Any]:
    """The arrays of one module.

    Args:
      module: its name.
      dtype: "float32", "bfloat16", or "source": that of the source.

    Raises:
      ConversionError: listing what is of wrong shape or absent.
    """
    dtype = self.dtypes[module] if dtype == "source" else dtype
    wanted = {f"{module}/{path}": leaf for path, leaf in self.shapes(module).items()}
    flat: dict[str, Any] = {}
    for share in self.shares[module]:
      try:
        flat |= tree.flatten(engine.read(share.source.tensors, share.part.rules, wanted, dtype))
      except engine.ConversionError as error:
        raise engine.ConversionError(f"{share.source.path}:\n{error}") from error
    return tree.unflatten(flat)[module]


def plan(locations: Sequence[str | Location], options: sources.Options | None = None) -> Plan:
  """Finds out what `locations` hold, and compares all names with the tables and the networks.

  Args:
    locations: places as of `sources.find`; later ones win.
    options: what the files do not tell.

  Raises:
    ValueError: for anything unreadable, unknown, doubled, missing or without its companion.
  """
  shares: dict[str, list[_Share]] = {}
  log: list[str] = []
  generate = tokenizer = None
  for location in (Location(x) if isinstance(x, str) else x for x in locations):
    taken = set()
    for source in sources.find(location.place):
      kind, reading = kinds.read_source(source, options or sources.Options())
      log += [f"{source.path}: {kind.name}", *(f"  {note}" for note in reading.notes)]
      table = [rule for part in reading.parts for rule in part.rules]
      try:
        engine.check(source.tensors, table, None, skip=reading.skip)
      except engine.ConversionError as error:
        raise engine.ConversionError(f"{source.path}:\n{error}") from error
      for reason, names in engine.unused(source.tensors, table, reading.skip).items():
        log.append(f"  skipped {len(names)} tensors ({names[0]}, …): {reason}")
      asked = [p for p in reading.parts if not location.role or p.module in ROLES[location.role]]
      if left := [p.module for p in reading.parts if p not in asked]:
        log.append(f"  not taken as --{location.role}: {', '.join(left)}")
      for part in asked:
        log += _take(shares, _Share(source, part))
        taken.add(part.module)
      if any(part.module == "llm" for part in asked):
        tokenizer = language.tokenizer_json(source.path) or tokenizer
      generate = reading.generate or generate
    if location.role and not taken:
      raise engine.ConversionError(
          f"--{location.role}={location.place} holds none of {', '.join(ROLES[location.role])}")
  dims = {module: _dims_of(module, held) for module, held in shares.items()}
  if "llm" in dims and tokenizer is None:
    log.append("no tokenizer.json beside the language model: generation and chat need one "
               "(docs/weights.md)")
  made = Plan(shares, dims, {module: _dtype(held) for module, held in shares.items()}, log, generate,
              tokenizer)
  _refuse_incomplete(made)
  return made


def import_weights(
    locations: Sequence[str | Location],
    out: str,
    *,
    options: sources.Options | None = None,
    dtype: str = "source",
    overwrite: bool = False,
) -> Plan:
  """Converts `locations` into one folder of weights at `out`; arguments as of `plan`.

  Args:
    locations: what to read.
    out: local or gs:// path.
    options: what the files do not tell.
    dtype: of the folder, one of DTYPES.
    overwrite: replace a folder of weights that stands at `out`.

  Raises:
    ValueError: for anything unreadable, unknown or not fitting; nothing is written then.
  """
  made = plan(locations, options)
  with folder_lib.Writer(out, overwrite=overwrite) as writer:
    for module, dims in made.dims.items():
      writer.add(module, made.read(module, dtype), dims)
    if made.tokenizer is not None:
      writer.write_text(folder_lib.TOKENIZER_FILE, made.tokenizer)
    extra = {"generate": dict(made.generate)} if made.generate else {}
    writer.finish(extra | {
        "source": [x if isinstance(x, str) else x.place for x in locations],
        "dtypes": made.dtypes})
  return made


@dataclasses.dataclass(frozen=True)
class Imported:
  """A whole import in memory.

  Attributes:
    modules: {name: nested dict of float32 arrays}.
    dims: as of `Plan`.
    dtypes: as of `Plan`.
    log: as of `Plan`.
  """

  modules: dict[str, Any]
  dims: dict[str, Any]
  dtypes: dict[str, str]
  log: list[str]


def convert(
    locations: Sequence[str | Location], options: sources.Options | None = None) -> Imported:
  """Reads and converts without writing; arguments and errors as of `plan`."""
  made = plan(locations, options)
  return Imported({module: made.read(module) for module in made.dims}, made.dims, made.dtypes,
                  made.log)


def _take(shares: dict[str, list[_Share]], share: _Share) -> list[str]:
  """Adds a share; returns a line where it takes the place of another source's module."""
  module = share.part.module
  held = shares.setdefault(module, [])
  # Shares whose dimensions stand in another source complete a module; whole ones replace it.
  rivals = [h for h in held if bool(h.part.dims) == bool(share.part.dims)]
  for rival in rivals:
    held.remove(rival)
  held.append(share)
  return [f"  {module}: taken from here, no longer from {r.source.path}" for r in rivals]


def _dims_of(module: str, shares: Sequence[_Share]) -> dict[str, Any]:
  for share in shares:
    if share.part.dims:
      return share.part.dims
  raise engine.ConversionError(
      f"incomplete:\n{module}: {shares[0].source.path} is only a part of it; "
      f"{_COMPANION.get(module, 'give the other source too')}")


def _dtype(shares: Sequence[_Share]) -> str:
  found = {share.source.tensors.dtypes[name].name
           for share in shares for name in engine.torch_names(share.part.rules)}
  # float32 holds every dtype that is read, so it is right for a mixture.
  return found.pop() if len(found) == 1 else "float32"


def _refuse_incomplete(made: Plan) -> None:
  """Raises ConversionError where paths and networks differ, or a module lacks its companion."""
  problems = []
  for module, shares in made.shares.items():
    paths = [path for share in shares for path in engine.paths(share.part.rules)]
    wanted = {f"{module}/{path}": tuple(leaf.shape) for path, leaf in made.shapes(module).items()}
    origin = functools.reduce(lambda text, s: f"{text}, {s.source.path}", shares, "").lstrip(", ")
    problems += [f"{path} {shape}: no source has it; "
                 f"{_COMPANION.get(module, f'{origin} is incomplete')}"
                 for path, shape in wanted.items() if path not in paths]
    problems += [f"{path}: in {origin}, but not in the model" for path in paths
                 if path not in wanted]
  if problems:
    more = f"\nand {len(problems) - 20} more" if len(problems) > 20 else ""
    raise engine.ConversionError("incomplete:\n" + "\n".join(problems[:20]) + more)


_COMPANION = {"lpips": "it needs torchvision's vgg16 and LPIPS' heads (vgg.pth): put both into one "
                       "folder, or give --source twice"}
