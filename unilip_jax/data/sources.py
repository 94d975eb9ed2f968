"""The source contract: random access to encoded records; rows of a config; opening a source by its kind.

A source is pickled into worker processes and opens its files there. `source[i]` is a Record; decoding
happens in examples.py. The kinds of this package are in source_kinds.py, plug-ins register others
(docs/extend.md has an example). Importing this module starts no accelerator.
"""

import abc
from collections.abc import Mapping, Sequence
import dataclasses
import inspect
import math
from typing import Any

from absl import logging

from unilip_jax.common import registry
from unilip_jax.data import omissions

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff",
                  "jfif", "jpe", "pjpeg", "pjp", "jpg_large", "apng", "ppm", "pgm", "pbm", "pnm")

# The parts of a record for each kind of example: {part: suffixes of its file, the first match counts}.
Parts = Mapping[str, Sequence[str]]
PARTS: Mapping[str, Parts] = {
    "reconstruct": {"image": IMAGE_SUFFIXES},
    "t2i": {"image": IMAGE_SUFFIXES, "text": ("txt",)},
    "edit": {"cond_image": tuple(f"input.{s}" for s in IMAGE_SUFFIXES),
             "image": tuple(f"output.{s}" for s in IMAGE_SUFFIXES), "text": ("txt",)},
    "understand": {"cond_image": IMAGE_SUFFIXES, "turns": ("json",)},
    # Prompts without images to learn from; `record` is what rewards need to know, a JSON object.
    "prompt": {"text": ("txt",), "record": ("json",)},
    "edit_prompt": {"cond_image": (*(f"input.{s}" for s in IMAGE_SUFFIXES),), "text": ("txt",),
                    "record": ("json",)}}

_SAME = "same"

for _kind in ("tar", "folder", "array_record", "tfds"):
  registry.register("source", _kind, f"unilip_jax.data.source_kinds:open_{_kind}")
  registry.register("source_check", _kind, f"unilip_jax.data.source_kinds:check_{_kind}")
registry.register("source", "own", "unilip_jax.data.own.source:open_own")
registry.register("source_check", "own", "unilip_jax.data.own.source:check_own")


@dataclasses.dataclass(frozen=True)
class Record:
  """One encoded record.

  Attributes:
    parts: {part: bytes of its file}.
    key: name of the record in its shard, for logs.
    shard: path of its file or folder, for logs.
    crop: how generation fits its images to the model's square (decode.fit); official is "stretch".
  """

  parts: Mapping[str, bytes]
  key: str
  shard: str
  crop: str = "stretch"


class Source(abc.ABC):
  """Random access to the records of one data set; picklable."""

  @abc.abstractmethod
  def __len__(self) -> int:
    """Returns the number of records."""

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Record:
    """Reads one record.

    Raises:
      OSError, decode.BadRecordError: for a record that cannot be used; the stream replaces it.
    """

  def without(self, part: str) -> "Source":
    """Returns a source of the same records that may leave out a part; saves reading bytes nobody needs."""
    del part
    return self

  def left_out(self) -> omissions.Omissions:
    """Returns what is below the source's path and becomes no record, as far as opening it shows."""
    return omissions.Omissions()

  def stamps(self) -> Sequence[str]:
    """Returns size and time of each file at the opening (files.stamp), in order; none if unknown."""
    return ()


@dataclasses.dataclass(frozen=True)
class SourceSpec:
  """Names a source, as a row of a config does.

  Attributes:
    kind: a registered name, e.g. "tar".
    path: its meaning depends on the kind.
    options: keyword arguments of the kind.
  """

  kind: str
  path: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    options = "".join(f" {name}={value}" for name, value in self.options.items())
    return f"{self.kind} {self.path}{options}"


@dataclasses.dataclass(frozen=True)
class Folders:
  """Folders that sources may write to.

  Attributes:
    render: for data that a source renders.
    index: for indices of tars.
  """

  render: str
  index: str


def training_row(row: Sequence[Any]) -> tuple[SourceSpec, float]:
  """Reads a row (kind, path, weight) or (kind, path, weight, {option: value}) of data.train or data.edit.

  Raises:
    ValueError: for another form.
  """
  kind, path, weight, options = _read_row("data.train and data.edit", row, ("kind", "path", "weight"))
  return SourceSpec(kind, path, options), float(weight)


def named_row(field: str, row: Sequence[Any], names: Sequence[str]
) -> tuple[tuple[str, ...], SourceSpec]:
  """Reads a row (*names, kind, path) or (*names, kind, path, {option: value}).

  Args:
    field: name of the config's field, for the message.
    row: a row of that field.
    names: of the values in front of kind and path.

  Returns:
    (values of `names`, the source).

  Raises:
    ValueError: for another form.
  """
  *values, kind, path, options = _read_row(field, row, (*names, "kind", "path"))
  return tuple(values), SourceSpec(kind, path, options)


def _read_row(field: str, row: Sequence[Any], names: Sequence[str]) -> tuple[Any, ...]:
  """Splits a row into the values of `names` and its options."""
  *values, options = row if len(row) == len(names) + 1 else (*row, {})
  if len(values) != len(names) or not isinstance(options, Mapping):
    raise ValueError(f"{field}: {tuple(row)!r} is not ({', '.join(names)}) or "
                     f"({', '.join(names)}, {{option: value}})")
  return (*values, dict(options))


def check_source(spec: SourceSpec, name: str, *, edits: bool = True) -> None:
  """Checks the kind, the options and the path of a source; opens and writes nothing.

  A kind may register a function (path, **options) that checks its paths, in the group "source_check".

  Args:
    spec: kind, path and options.
    name: of the field, for the message.
    edits: whether the records may be edits.

  Raises:
    ValueError: for an unknown kind or option, or a path of the wrong form.
    FileNotFoundError: if nothing matches the path.
  """
  try:
    _find_kind(spec)
    if spec.options.get(_SAME) and not edits:
      raise ValueError(f"the option {_SAME} is for rows of data.edit")
    if registry.has("source_check", spec.kind):
      registry.find("source_check", spec.kind)(spec.path, **_own_options(spec))
  except (ValueError, FileNotFoundError) as error:
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    raise kind(f"{name}, {spec}: {error}") from error


def _find_kind(spec: SourceSpec) -> Any:
  """Returns the function that opens a kind; refuses options that it does not have."""
  open_kind = registry.find("source", spec.kind)
  options = _own_options(spec)
  if not isinstance(spec.options.get(_SAME, False), bool):
    raise ValueError(f"{spec}: the option {_SAME} is True or False")
  known = [name for name, p in inspect.signature(open_kind).parameters.items()
           if p.kind is p.KEYWORD_ONLY]
  if unknown := sorted(set(options) - set(known)):
    raise ValueError(
        f"{spec}: unknown option {', '.join(unknown)}; known: {', '.join([*known, _SAME])}")
  return open_kind


def _own_options(spec: SourceSpec) -> dict[str, Any]:
  """Returns the options of a source's kind, without the one that all kinds have."""
  return {name: value for name, value in spec.options.items() if name != _SAME}


def open_source(
    spec: SourceSpec, *, example: str, folders: Folders, max_bad_fraction: float = 1.0) -> Source:
  """Opens a source, and logs what it leaves out.

  The registered function of a kind is called as (path, example, folders, **options). Its keyword-only
  parameters are the options of the kind. Every kind has the option `same` for edits: its images alone are
  read, each as input and target of an edit that changes nothing (realignment.py).

  Args:
    spec: kind, path and options.
    example: kind of example that the records are for, a key of PARTS.
    folders: that the source may write to.
    max_bad_fraction: of the records; if more are left out (data.max_bad_fraction), the source is refused.

  Raises:
    ValueError: for an unknown kind or option, a source without such records, or too many left out.
    FileNotFoundError: if nothing matches the path.
  """
  same = spec.options.get(_SAME, False)
  if same and example != "edit":
    raise ValueError(f"{spec}: the option {_SAME} is for rows of data.edit")
  source = _find_kind(spec)(
      spec.path, "reconstruct" if same else example, folders, **_own_options(spec))
  if same:
    from unilip_jax.data import realignment  # which derives from this file's classes

    source, example = realignment.SameImage(source), "reconstruct"
  left_out = source.left_out()
  reasons = f". Left out: {left_out}" if left_out else ""
  if not len(source):
    needs = "; ".join(f"{part}: {', '.join(suffixes)}" for part, suffixes in PARTS[example].items())
    raise ValueError(f"{spec} holds no records for the example {example!r}: each record needs "
                     f"{needs}{reasons}")
  if excess := excess_left_out(source, max_bad_fraction):
    raise ValueError(f"{spec}: {excess.problem}{reasons}. Correct the data, or raise data.max_bad_fraction "
                     f"({excess.remedy} accepts them)")
  if left_out:
    log = logging.warning if left_out.bad else logging.info
    log("%s: %d of %d records are read%s", spec, len(source), len(source) + left_out.bad, reasons)
  return source


@dataclasses.dataclass(frozen=True)
class Excess:
  """Words about a source that training refuses: how much is left out, and the option that accepts it."""

  problem: str
  remedy: str


def excess_left_out(source: Source, max_bad_fraction: float) -> Excess | None:
  """Returns words about more than `max_bad_fraction` of lost records; None if there are fewer."""
  bad = source.left_out().bad
  count = len(source) + bad
  if bad <= max_bad_fraction * count:
    return None
  return Excess(
      f"{bad} of {count} records are left out, more than data.max_bad_fraction={max_bad_fraction:g}",
      f"--config.data.max_bad_fraction={math.ceil(100 * bad / count) / 100:g}")
