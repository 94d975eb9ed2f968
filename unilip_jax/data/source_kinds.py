"""The source kinds of this package: tar, folder, array_record and tfds (docs/data.md has their paths)."""

import abc
from collections.abc import Sequence
import copy
import os
from typing import Any

import msgpack
import numpy as np

from unilip_jax.common import paths
from unilip_jax.data import decode, files, sources, tar_index


def open_tar(path: str, example: str, folders: sources.Folders) -> sources.Source:
  """Opens WebDataset tars: files or patterns, comma-separated."""
  return TarSource(files.expand(path), folders.index, sources.PARTS[example])


def open_folder(path: str, example: str, folders: sources.Folders) -> sources.Source:
  """Opens a folder, read recursively."""
  del folders
  return FolderSource(path, sources.PARTS[example])


def open_array_record(path: str, example: str, folders: sources.Folders) -> sources.Source:
  """Opens ArrayRecord files: files or patterns, comma-separated."""
  del folders
  return ArrayRecordSource(files.expand(path), sources.PARTS[example])


def open_tfds(path: str, example: str, folders: sources.Folders) -> sources.Source:
  """Opens "name:split" or "name:split:data_dir" of tensorflow-datasets."""
  del folders
  return TfdsSource(*path.split(":", 2), parts=sources.PARTS[example])


def check_tar(path: str) -> None:
  """Checks that files match; see sources.check_source."""
  files.expand(path)


def check_folder(path: str) -> None:
  """Checks that a folder exists; see sources.check_source."""
  paths.existing_folder(path, "path")


def check_array_record(path: str) -> None:
  """Checks that files match; see sources.check_source."""
  files.expand(path)


def check_tfds(path: str) -> None:
  """Checks the form "name:split[:data_dir]"; see sources.check_source."""
  name, _, split = path.partition(":")
  if not name or not split:
    raise ValueError("expected name:split or name:split:data_dir")


class TarSource(sources.Source):
  """Samples of WebDataset tars that have every part.

  Attributes:
    problems: {path: what is wrong} of tars that are read up to a break only.
  """

  def __init__(self, paths: Sequence[str], index_dir: str, parts: sources.Parts):
    self._paths, self._parts = list(paths), tuple(parts)
    self._keys: list[list[str]] = []
    offsets, sizes, shards, rows = [], [], [], []
    self.problems: dict[str, str] = {}
    for shard, path in enumerate(self._paths):
      index = tar_index.load(path, index_dir)
      if index.problem:
        self.problems[path] = index.problem
      self._keys.append(index.keys)
      columns = np.stack([_first_present(index, suffixes) for suffixes in parts.values()], axis=1)
      complete = np.flatnonzero((columns >= 0).all(axis=1))
      columns = columns[complete]
      offsets.append(index.offsets[complete[:, None], columns])
      sizes.append(index.sizes[complete[:, None], columns])
      shards.append(np.full(len(complete), shard, np.int32))
      rows.append(complete)
    self._offsets, self._sizes = np.concatenate(offsets), np.concatenate(sizes)
    self._shards, self._rows = np.concatenate(shards), np.concatenate(rows)

  def without(self, part: str) -> "TarSource":
    """Returns a source of the same records that does not read a part."""
    other = copy.copy(self)
    columns = [i for i, name in enumerate(self._parts) if name != part]
    other._parts = tuple(self._parts[i] for i in columns)
    other._offsets, other._sizes = self._offsets[:, columns], self._sizes[:, columns]
    return other

  def __len__(self) -> int:
    return len(self._offsets)

  def __getitem__(self, index: int) -> sources.Record:
    shard = int(self._shards[index])
    path = self._paths[shard]
    parts = {part: files.read_range(path, int(offset), int(size)) for part, offset, size in zip(
        self._parts, self._offsets[index], self._sizes[index])}
    return sources.Record(parts, self._keys[shard][int(self._rows[index])], path)


def _first_present(index: tar_index.TarIndex, suffixes: Sequence[str]) -> np.ndarray:
  """Returns int[samples]: column of the first of `suffixes` that a sample has, -1 where it has none."""
  columns = np.array([index.suffixes.index(s) for s in suffixes if s in index.suffixes], int)
  if not len(columns):
    return np.full(len(index), -1)
  present = index.offsets[:, columns] >= 0
  return np.where(present.any(1), columns[present.argmax(1)], -1)


class FolderSource(sources.Source):
  """Files below a folder, sorted by path; parts of a record share the name up to its first dot.

  For examples that need an image alone, every image is a record.
  """

  def __init__(self, folder: str, parts: sources.Parts):
    self._folder = paths.path(folder)
    if not self._folder.is_dir():
      raise FileNotFoundError(f"{folder} is not a folder; see docs/data.md for the layouts")
    bare = lambda p: os.fspath(p).rpartition("://")[2]  # walks of buckets drop the scheme
    root = bare(self._folder)
    names = sorted(
        os.path.relpath(os.path.join(bare(place), name), root)
        for place, _, names in self._folder.walk() for name in names)
    if set(parts) == {"image"}:
      suffixes = parts["image"]
      self._records = [{"image": n} for n in names if n.lower().rpartition(".")[2] in suffixes]
    else:
      self._records = _group_by_stem(names, parts)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> sources.Record:
    names = self._records[index]
    parts = {part: (self._folder / name).read_bytes() for part, name in names.items()}
    return sources.Record(parts, next(iter(names.values())), os.fspath(self._folder))


def _group_by_stem(names: Sequence[str], parts: sources.Parts) -> list[dict[str, str]]:
  """Returns {part: file} of every stem that has all parts."""
  stems: dict[str, dict[str, str]] = {}
  for name in names:
    stem, suffix = tar_index.split_name(name)
    stems.setdefault(stem, {})[suffix] = name
  records = []
  for by_suffix in stems.values():
    record = {part: next((by_suffix[s] for s in suffixes if s in by_suffix), "")
              for part, suffixes in parts.items()}
    if all(record.values()):
      records.append(record)
  return records


class _ReaderSource(sources.Source):
  """A source behind a library's reader, which each process opens for itself."""

  def __init__(self):
    """Opens the reader; a subclass has set what `_open` needs."""
    self._reader: Any = None
    self._length = len(self._open())

  @abc.abstractmethod
  def _open(self) -> Any:
    """Returns the reader, opened at the first call in this process."""

  def __getstate__(self):
    return self.__dict__ | {"_reader": None}

  def __len__(self) -> int:
    return self._length


class ArrayRecordSource(_ReaderSource):
  """Records of ArrayRecord files: a msgpack map of the parts, or an encoded image alone."""

  def __init__(self, paths: Sequence[str], parts: sources.Parts):
    self._paths, self._parts = list(paths), tuple(parts)
    super().__init__()

  def _open(self) -> Any:
    if self._reader is None:
      from array_record.python import array_record_data_source

      try:
        self._reader = array_record_data_source.ArrayRecordDataSource(self._paths)
        len(self._reader)  # reads the ends of the files
      except RuntimeError as error:
        paths = ", ".join(self._paths[:5]) + (" …" if len(self._paths) > 5 else "")
        raise ValueError(f"one of {paths} is not an ArrayRecord file, or broken: {error}") from error
    return self._reader

  def __getitem__(self, index: int) -> sources.Record:
    key, shard = str(index), ",".join(self._paths[:1])
    try:
      data = self._open()[index]
    except RuntimeError as error:
      raise decode.BadRecordError(f"record {index} of {shard} … is broken: {error}") from error
    if data[:1] in (b"\x81", b"\x82", b"\x83", b"\x84", b"\x85", b"\x86"):  # msgpack's small maps
      try:
        values = msgpack.unpackb(data)
        parts = {part: _to_bytes(value) for part, value in values.items() if part in self._parts}
      except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise decode.BadRecordError(
            f"record {index} of {shard} is broken: {type(error).__name__}: {error}") from error
      key = str(values.get("key", key))
    else:
      parts = {"image": data}
    missing = [part for part in self._parts if part not in parts]
    if missing:
      raise decode.BadRecordError(f"the record lacks {', '.join(missing)}")
    return sources.Record(parts, key, shard)


class TfdsSource(_ReaderSource):
  """A tensorflow-datasets split stored as ArrayRecord, images left encoded; features name the parts."""

  def __init__(self, name: str, split: str, data_dir: str | None = None, *, parts: sources.Parts):
    self._args, self._parts = (name, split, data_dir), tuple(parts)
    super().__init__()

  def _open(self) -> Any:
    if self._reader is None:
      import tensorflow_datasets as tfds  # works without TensorFlow

      name, split, data_dir = self._args
      self._reader = tfds.data_source(
          name, split=split, data_dir=data_dir,
          decoders={part: tfds.decode.SkipDecoding() for part in self._parts if "image" in part})
    return self._reader

  def __getitem__(self, index: int) -> sources.Record:
    element = self._open()[index]
    parts = {part: _to_bytes(element[part]) for part in self._parts}
    return sources.Record(parts, str(index), ":".join(self._args[:2]))


def _to_bytes(value: Any) -> bytes:
  """Returns the bytes of a part; a number (a label) becomes its digits, as in the `cls` files of tars."""
  if isinstance(value, (bytes, str)):
    return value.encode() if isinstance(value, str) else value
  if isinstance(value, (int, np.integer)):
    return str(int(value)).encode()
  raise TypeError(f"a part is of type {type(value).__name__}, not bytes or text")
