"""Random-access sources of encoded records: tars, folders, ArrayRecord files, tensorflow-datasets.

A source is pickled into worker processes and opens its files there. `source[i]` is a Record; nothing
is decoded here. Importing this module starts no accelerator.
"""

from collections.abc import Callable, Mapping, Sequence
import copy
import dataclasses
import functools
import glob
import inspect
import os
from typing import Any, Protocol

from etils import epath
import msgpack
import numpy as np

from unilip_jax.common import registry
from unilip_jax.data import decode, tar_index

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_OPEN_FILES = 64  # descriptors a process keeps

# What a record of each kind of example consists of: {part: suffixes of its file, the first found counts}.
Parts = Mapping[str, Sequence[str]]
PARTS: Mapping[str, Parts] = {
    "reconstruct": {"image": IMAGE_SUFFIXES},
    "t2i": {"image": IMAGE_SUFFIXES, "text": ("txt",)},
    "edit": {"cond_image": tuple(f"input.{s}" for s in IMAGE_SUFFIXES),
             "image": tuple(f"output.{s}" for s in IMAGE_SUFFIXES), "text": ("txt",)},
    "understand": {"cond_image": IMAGE_SUFFIXES, "turns": ("json",)}}


@dataclasses.dataclass(frozen=True)
class Record:
  """One encoded record.

  Attributes:
    parts: {part: bytes of its file}.
    key: of the record in its shard.
    shard: the file or folder it stands in.
  """

  parts: Mapping[str, bytes]
  key: str
  shard: str


class Source(Protocol):
  """What the stream reads."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class SourceSpec:
  """What a row of a config says about a source.

  Attributes:
    kind: a registered name, e.g. "tar".
    path: as that kind reads it.
    options: of that kind.
  """

  kind: str
  path: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    options = "".join(f" {name}={value}" for name, value in self.options.items())
    return f"{self.kind} {self.path}{options}"


def training_row(row: Sequence[Any]) -> tuple[SourceSpec, float]:
  """Reads a row (kind, path, weight) or (kind, path, weight, {option: value}) of data.train or data.edit.

  Raises:
    ValueError: for another form.
  """
  kind, path, weight, options = _fields("data.train and data.edit", row, ("kind", "path", "weight"))
  return SourceSpec(kind, path, options), float(weight)


def named_row(field: str, row: Sequence[Any], names: Sequence[str]
) -> tuple[tuple[str, ...], SourceSpec]:
  """Reads a row (*names, kind, path) or (*names, kind, path, {option: value}).

  Args:
    field: of the config, for the message.
    row: of that field.
    names: what stands before kind and path.

  Returns:
    (values of `names`, the source).

  Raises:
    ValueError: for another form.
  """
  *values, kind, path, options = _fields(field, row, (*names, "kind", "path"))
  return tuple(values), SourceSpec(kind, path, options)


def _fields(field: str, row: Sequence[Any], names: Sequence[str]) -> tuple[Any, ...]:
  *values, options = row if len(row) == len(names) + 1 else (*row, {})
  if len(values) != len(names) or not isinstance(options, Mapping):
    raise ValueError(f"{field}: {tuple(row)!r} is not ({', '.join(names)}) or "
                     f"({', '.join(names)}, {{option: value}})")
  return (*values, dict(options))


@dataclasses.dataclass(frozen=True)
class Folders:
  """Where sources may write.

  Attributes:
    render: for sources that render their data.
    index: for indices of tars.
  """

  render: str
  index: str


def open_source(spec: SourceSpec, *, example: str, folders: Folders) -> Source:
  """Opens a source.

  Args:
    spec: kind, path and options. tar and array_record: a file or pattern, comma-separated; folder: a
      folder, read recursively; tfds: "name:split" or "name:split:data_dir"; other kinds are of plug-ins.
    example: kind of example that is made of the records, a key of PARTS.
    folders: where the source may write.

  Raises:
    ValueError: for an unknown kind or option, or a source without such records.
    FileNotFoundError: if nothing matches the path.
  """
  parts = PARTS[example]
  make = registry.find("source", spec.kind)
  known = [name for name, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY]
  if unknown := sorted(set(spec.options) - set(known)):
    raise ValueError(f"{spec}: unknown option {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
  source = make(spec.path, example, folders, **spec.options)
  if not len(source):
    wanted = "; ".join(f"{part}: {', '.join(suffixes)}" for part, suffixes in parts.items())
    raise ValueError(f"{spec} holds no records to {example}: each needs {wanted}")
  return source


def _tar(path: str, example: str, folders: Folders) -> Source:
  return TarSource(expand(path), folders.index, PARTS[example])


def _folder(path: str, example: str, folders: Folders) -> Source:
  del folders
  return FolderSource(path, PARTS[example])


def _array_record(path: str, example: str, folders: Folders) -> Source:
  del folders
  return ArrayRecordSource(expand(path), PARTS[example])


def _tfds(path: str, example: str, folders: Folders) -> Source:
  del folders
  return TfdsSource(*path.split(":", 2), parts=PARTS[example])


for _kind in ("tar", "folder", "array_record", "tfds"):
  registry.register("source", _kind, f"{__name__}:_{_kind}")


def expand(patterns: str) -> list[str]:
  """Files of comma-separated patterns, sorted within each.

  Raises:
    FileNotFoundError: if a pattern matches nothing.
  """
  files: list[str] = []
  for pattern in patterns.split(","):
    if "://" in pattern:
      scheme, rest = pattern.split("://", 1)
      parts = rest.split("/")
      fixed = next((i for i, p in enumerate(parts) if glob.has_magic(p)), len(parts) - 1)
      root = epath.Path(f"{scheme}://{'/'.join(parts[:fixed])}")
      found = sorted(os.fspath(p) for p in root.glob("/".join(parts[fixed:])))
    else:
      found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not found:
      raise FileNotFoundError(f"no file matches {pattern}; see docs/data.md for the layouts")
    files += found
  return files


class TarSource:
  """Samples of WebDataset tars that have every part."""

  def __init__(self, paths: Sequence[str], index_dir: str, parts: Parts):
    self._paths, self._parts = list(paths), tuple(parts)
    self._keys: list[list[str]] = []
    offsets, sizes, shards, rows = [], [], [], []
    self.problems: dict[str, str] = {}
    for shard, path in enumerate(self._paths):
      index = tar_index.load(path, index_dir)
      if index.problem:
        self.problems[path] = index.problem
      self._keys.append(index.keys)
      chosen = [_first_present(index, suffixes) for suffixes in parts.values()]
      keep = np.flatnonzero(np.all([column >= 0 for column in chosen], axis=0))
      picked = np.stack(chosen, axis=1)[keep]
      offsets.append(index.offsets[keep[:, None], picked])
      sizes.append(index.sizes[keep[:, None], picked])
      shards.append(np.full(len(keep), shard, np.int32))
      rows.append(keep)
    self._offsets, self._sizes = np.concatenate(offsets), np.concatenate(sizes)
    self._shards, self._rows = np.concatenate(shards), np.concatenate(rows)

  def without(self, part: str) -> "TarSource":
    """The same records, without reading the bytes of a part."""
    other = copy.copy(self)
    keep = [i for i, name in enumerate(self._parts) if name != part]
    other._parts = tuple(self._parts[i] for i in keep)
    other._offsets, other._sizes = self._offsets[:, keep], self._sizes[:, keep]
    return other

  def __len__(self) -> int:
    return len(self._offsets)

  def __getitem__(self, index: int) -> Record:
    shard = int(self._shards[index])
    path = self._paths[shard]
    parts = {part: read_range(path, int(offset), int(size)) for part, offset, size in zip(
        self._parts, self._offsets[index], self._sizes[index])}
    return Record(parts, self._keys[shard][int(self._rows[index])], path)


def _first_present(index: tar_index.TarIndex, suffixes: Sequence[str]) -> np.ndarray:
  """int[samples]: column of the first of `suffixes` that a sample has, -1 where it has none."""
  columns = np.array([index.suffixes.index(s) for s in suffixes if s in index.suffixes], int)
  if not len(columns):
    return np.full(len(index), -1)
  present = index.offsets[:, columns] >= 0
  return np.where(present.any(1), columns[present.argmax(1)], -1)


def is_file(path: epath.PathLike) -> bool:
  """Whether a path is a regular file: not a pipe or a device, reading which might never end."""
  text = os.fspath(path)
  return epath.Path(text).is_file() if "://" in text else os.path.isfile(text)


def read_range(path: str, offset: int, size: int) -> bytes:
  """`size` bytes of a local or remote file."""
  if "://" in path:
    with epath.Path(path).open("rb") as f:
      f.seek(offset)
      return f.read(size)
  file = _opened(path, os.getpid())  # held: another thread may push it out of the cache meanwhile
  return os.pread(file.fileno(), size, offset)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, process: int) -> Any:
  del process  # a forked child must not share its parent's cache entry
  return open(path, "rb", buffering=0)


class FolderSource:
  """Files below a folder, sorted by path; parts of a record share the name up to its first dot.

  Where images are all that is wanted, every image is a record.
  """

  def __init__(self, folder: str, parts: Parts):
    self._folder = epath.Path(folder).expanduser()
    if not self._folder.is_dir():
      raise FileNotFoundError(f"{folder} is no folder; see docs/data.md for the layouts")
    bare = lambda p: os.fspath(p).rpartition("://")[2]  # walks of buckets drop the scheme
    root = bare(self._folder)
    names = sorted(
        os.path.relpath(os.path.join(bare(place), name), root)
        for place, _, names in self._folder.walk() for name in names)
    if set(parts) == {"image"}:
      suffixes = parts["image"]
      self._records = [{"image": n} for n in names if n.lower().rpartition(".")[2] in suffixes]
    else:
      self._records = _grouped(names, parts)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    names = self._records[index]
    parts = {part: (self._folder / name).read_bytes() for part, name in names.items()}
    return Record(parts, next(iter(names.values())), os.fspath(self._folder))


def _grouped(names: Sequence[str], parts: Parts) -> list[dict[str, str]]:
  """{part: file} of every stem that has all parts."""
  stems: dict[str, dict[str, str]] = {}
  for name in names:
    stem, suffix = tar_index.split_name(name)
    stems.setdefault(stem, {})[suffix] = name
  records = []
  for files in stems.values():
    record = {part: next((files[s] for s in suffixes if s in files), "")
              for part, suffixes in parts.items()}
    if all(record.values()):
      records.append(record)
  return records


class ArrayRecordSource:
  """Records of ArrayRecord files: a msgpack map with the parts, or an encoded image alone."""

  def __init__(self, paths: Sequence[str], parts: Parts):
    self._paths, self._parts = list(paths), tuple(parts)
    self._open: Callable[[], Any] | Any = None
    self._length = len(self._source())

  def _source(self) -> Any:
    if self._open is None:
      from array_record.python import array_record_data_source

      try:
        self._open = array_record_data_source.ArrayRecordDataSource(self._paths)
        len(self._open)  # reads the ends of the files
      except RuntimeError as error:
        raise ValueError(f"of {', '.join(self._paths[:5])}{' …' if len(self._paths) > 5 else ''} one is "
                         f"no ArrayRecord file, or broken: {error}") from error
    return self._open

  def __getstate__(self):
    return self.__dict__ | {"_open": None}

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Record:
    key, shard = str(index), ",".join(self._paths[:1])
    try:
      data = self._source()[index]
    except RuntimeError as error:
      raise decode.BadRecordError(f"record {index} of {shard} … is broken: {error}") from error
    if data[:1] in (b"\x81", b"\x82", b"\x83", b"\x84", b"\x85", b"\x86"):  # msgpack's small maps
      try:
        found = msgpack.unpackb(data)
        parts = {part: _as_bytes(value) for part, value in found.items() if part in self._parts}
      except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise decode.BadRecordError(
            f"record {index} of {shard} is broken: {type(error).__name__}: {error}") from error
      key = str(found.get("key", key))
    else:
      parts = {"image": data}
    missing = [part for part in self._parts if part not in parts]
    if missing:
      raise decode.BadRecordError(f"the record lacks {', '.join(missing)}")
    return Record(parts, key, shard)


class TfdsSource:
  """A tensorflow-datasets split stored as ArrayRecord, images left encoded; features name the parts."""

  def __init__(self, name: str, split: str, data_dir: str | None = None, *, parts: Parts):
    self._args, self._parts = (name, split, data_dir), tuple(parts)
    self._open: Any = None
    self._length = len(self._source())

  def _source(self) -> Any:
    if self._open is None:
      import tensorflow_datasets as tfds  # needs no TensorFlow for this

      name, split, data_dir = self._args
      self._open = tfds.data_source(
          name, split=split, data_dir=data_dir,
          decoders={part: tfds.decode.SkipDecoding() for part in self._parts if "image" in part})
    return self._open

  def __getstate__(self):
    return self.__dict__ | {"_open": None}

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Record:
    element = self._source()[index]
    parts = {part: _as_bytes(element[part]) for part in self._parts}
    return Record(parts, str(index), ":".join(self._args[:2]))


def _as_bytes(value: Any) -> bytes:
  """Bytes of a part; a number (a label) is written out, as in the tars' `cls` files."""
  if isinstance(value, (bytes, str)):
    return value.encode() if isinstance(value, str) else value
  if isinstance(value, (int, np.integer)):
    return str(int(value)).encode()
  raise TypeError(f"a part is of type {type(value).__name__}, not bytes or text")
