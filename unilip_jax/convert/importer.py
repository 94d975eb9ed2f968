"""Imports PyTorch weights into a folder: reads, converts, checks against the networks, writes atomically.

All names are compared before a tensor is read; then one module after the other is read, checked and
written, so that memory holds one module. Of a module in several sources, the last one's is imported,
as in `config.init_from`.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from unilip_jax.common import arguments, errors, tree
from unilip_jax.convert import choices, engine, formats, io, modules, pickles, qwen2, reading
from unilip_jax.models import unilip
from unilip_jax.weights import folder as folder_lib

# The modules that are read for each component, in the order in which later ones win.
ROLES = {
    "mllm": unilip.UNDERSTANDING,
    "dit": ("dit",),
    "vae": ("encoder", "decoder"),
    "unilip": unilip.MODULES,
}
DTYPES = choices.IMPORT_DTYPES
_COMPANION = {
    module: f"it needs torchvision's {trunk} and LPIPS' heads ({heads}.pth): put both into one folder, or "
            "give --source twice"
    for module, trunk, heads in (("lpips", "vgg16", "vgg"), ("lpips_alex", "alexnet", "alex"),
                                 ("lpips_squeeze", "squeezenet1_1", "squeeze"))}


@dataclasses.dataclass(frozen=True)
class Location:
  """What a user gives to read; `role` is a key of ROLES, or None for every module that is there."""

  place: str
  role: str | None = None


@dataclasses.dataclass(frozen=True)
class _Share:
  """A module, or a share of it, within one source."""

  source: io.Source
  part: reading.Part


@dataclasses.dataclass(frozen=True)
class Plan:
  """What an import will read; only headers have been read.

  Attributes:
    dims: {module: JSON-ready dimensions}, in the order of writing.
    dtypes: {module: dtype in the source}, float32 if a source has several.
    log: lines for the user: skipped tensors, assumptions, and which source wins.
    generate: what sampling needs of a complete UniLIP, or None.
    tokenizer: tokenizer.json of the language model's source, or None.
  """

  shares: Mapping[str, list[_Share]]
  dims: dict[str, Any]
  dtypes: dict[str, str]
  log: list[str]
  generate: Mapping[str, Any] | None
  tokenizer: str | None

  def shapes(self, module: str) -> dict[str, Any]:
    """Returns {path below the module: shape} of its network."""
    return modules.shapes(module, self.dims[module], self.dims.get("llm"))

  def read(self, module: str, dtype: str = "float32") -> dict[str, Any]:
    """Reads the arrays of one module.

    Args:
      module: its name.
      dtype: "float32", "bfloat16", or "source": that of the source.

    Raises:
      ConversionError: listing tensors of wrong shapes or dtypes.
    """
    dtype = self.dtypes[module] if dtype == "source" else dtype
    expected = {f"{module}/{path}": leaf for path, leaf in self.shapes(module).items()}
    flat: dict[str, Any] = {}
    for share in self.shares[module]:
      with _named(share.source):
        flat |= tree.flatten(engine.read(share.source.tensors, share.part.rules, expected, dtype))
    return tree.unflatten(flat)[module]


@contextlib.contextmanager
def _named(source: io.Source) -> Iterator[None]:
  """Adds the source's path to a ConversionError."""
  try:
    yield
  except engine.ConversionError as error:
    raise engine.ConversionError(f"{source.path}:\n{error}") from error


def plan(
    locations: Sequence[str | Location], options: reading.Options = reading.DEFAULTS) -> Plan:
  """Opens `locations`, and compares all names with the rules and the networks.

  Args:
    locations: as of `io.find`; later ones win.
    options: what the files do not contain.

  Raises:
    ValueError: for anything unreadable, unknown, repeated, missing or without its companion.
  """
  for location in locations:
    place = pathlib.Path(location if isinstance(location, str) else location.place)
    if place.suffix in pickles.SUFFIXES:  # known before other sources are downloaded
      pickles.import_torch(place, f"reading {place.suffix}")
  shares: dict[str, list[_Share]] = {}
  log: list[str] = []
  generate = tokenizer = None
  for location in (Location(x) if isinstance(x, str) else x for x in locations):
    imported: list[_Share] = []
    for source in io.find(location.place):
      row, result = formats.read_source(source, options)
      log += [f"{source.path}: {row.name}", *(f"  {note}" for note in formats.notes(source, result))]
      rules = [rule for part in result.parts for rule in part.rules]
      with _named(source):
        engine.check(source.tensors, rules, None, skip=result.skip)
      for reason, names in engine.unused(source.tensors, rules, result.skip).items():
        log.append(f"  skipped {len(names)} tensors ({names[0]}, …): {reason}")
      parts = [p for p in result.parts if not location.role or p.module in ROLES[location.role]]
      if others := [p.module for p in result.parts if p not in parts]:
        log.append(f"  not imported as --{location.role}: {', '.join(others)}")
      for part in parts:
        share = _Share(source, part)
        _refuse_choice(imported, share, location)
        log += _add(shares, share)
        imported.append(share)
      if any(part.module == "llm" for part in parts):
        tokenizer = qwen2.tokenizer_json(source.path) or tokenizer
      generate = result.generate or generate
    if location.role and not imported:
      raise engine.ConversionError(
          f"--{location.role}={location.place} holds none of {', '.join(ROLES[location.role])}")
  dims = {module: _dims_of(module, parts) for module, parts in shares.items()}
  if "llm" in dims and tokenizer is None:
    log.append("no tokenizer.json next to the language model: generation and chat need one "
               "(docs/weights.md)")
  dtypes = {module: _dtype(parts) for module, parts in shares.items()}
  result = Plan(shares, dims, dtypes, log, generate, tokenizer)
  _refuse_incomplete(result)
  return result


def import_weights(
    locations: Sequence[str | Location], out: str, *, options: reading.Options = reading.DEFAULTS,
    dtype: str = "source", overwrite: bool = False
) -> Plan:
  """Converts `locations` into one folder of weights.

  Args:
    locations: as of `plan`.
    out: local or gs:// path.
    options: what the files do not contain.
    dtype: of the folder, one of DTYPES.
    overwrite: replace a folder of weights at `out`.

  Raises:
    ValueError: for anything unreadable, unknown or not fitting; nothing is written then.
  """
  arguments.choice("dtype", dtype, DTYPES)
  result = plan(locations, options)
  with folder_lib.Writer(out, overwrite=overwrite) as writer:
    for module, dims in result.dims.items():
      writer.add(module, result.read(module, dtype), dims)
    if result.tokenizer is not None:
      writer.write_text(folder_lib.TOKENIZER_FILE, result.tokenizer)
    extra = {"generate": dict(result.generate)} if result.generate else {}
    writer.finish(extra | {
        "source": [x if isinstance(x, str) else x.place for x in locations],
        "dtypes": result.dtypes})
  return result


def _refuse_choice(imported: Sequence[_Share], share: _Share, location: Location) -> None:
  """Refuses a folder of which two files hold the same module.

  Args:
    imported: the shares of this location before.
    share: the next one.
    location: of both.

  Raises:
    ConversionError: with both files and how to choose one.
  """
  for other in imported:
    if _rivals(other, share) and other.source.path.is_file() and share.source.path.is_file():
      option = f"--{location.role or 'source'}="
      raise engine.ConversionError(
          f"{location.place}: {other.source.path.name} and {share.source.path.name} both hold "
          f"{share.part.module}; choose {option}{other.source.path} or {option}{share.source.path}")


def _rivals(one: _Share, other: _Share) -> bool:
  """Whether both hold a complete module, or both its rest: a share without dimensions completes one."""
  return one.part.module == other.part.module and bool(one.part.dims) == bool(other.part.dims)


def _add(shares: dict[str, list[_Share]], share: _Share) -> list[str]:
  """Adds a share; returns a line for each module of another source that it replaces."""
  module = share.part.module
  rivals = [s for s in shares.get(module, ()) if _rivals(s, share)]
  shares[module] = [*(s for s in shares.get(module, ()) if s not in rivals), share]
  return [f"  {module}: imported from here, no longer from {s.source.path}" for s in rivals]


def _dims_of(module: str, shares: Sequence[_Share]) -> dict[str, Any]:
  for share in shares:
    if share.part.dims:
      return share.part.dims
  raise engine.ConversionError(
      f"incomplete:\n{module}: {shares[0].source.path} is only a part of it; "
      f"{_COMPANION.get(module, 'give the other source too')}")


def _dtype(shares: Sequence[_Share]) -> str:
  dtypes = {share.source.tensors.dtypes[name].name
            for share in shares for name in engine.torch_names(share.part.rules)}
  # float32 represents every dtype that is read, so it is right for a mixture.
  return dtypes.pop() if len(dtypes) == 1 else "float32"


def _refuse_incomplete(result: Plan) -> None:
  """Raises ConversionError if paths and networks differ, or a module lacks its companion."""
  problems = []
  for module, shares in result.shares.items():
    paths = dict.fromkeys(rule.path for share in shares for rule in share.part.rules)
    model = {f"{module}/{path}": tuple(leaf.shape) for path, leaf in result.shapes(module).items()}
    origin = ", ".join(str(share.source.path) for share in shares)
    problems += [f"{path} {shape}: no source has it; "
                 f"{_COMPANION.get(module, f'{origin} is incomplete')}"
                 for path, shape in model.items() if path not in paths]
    problems += [f"{path}: in {origin}, but not in the model" for path in paths if path not in model]
  if problems:
    raise engine.ConversionError(f"incomplete:\n{errors.listed(problems)}")
