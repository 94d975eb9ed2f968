"""The source kinds of this package: tar, folder, array_record and tfds (docs/data.md has their paths)."""

import abc
from collections.abc import Sequence
import copy
import math
import os
import time
from typing import Any

import msgpack
import numpy as np

from unilip_jax.common import paths
from unilip_jax.data import decode, files, folder_source, omissions, prepared, sources, tar_index

_CHECK_SECONDS = 10.0  # between two comparisons of the stamps of ArrayRecord files
_MAPS = [bytes([b]) for b in (*range(0x80, 0x90), 0xde, 0xdf)]  # first bytes of msgpack's maps


def open_tar(path: str, example: str, folders: sources.Folders) -> sources.Source:
  """Opens WebDataset tars: files or patterns, comma-separated."""
  return TarSource(files.expand(path), folders.index, sources.PARTS[example])


def open_folder(path: str, example: str, folders: sources.Folders) -> sources.Source:
  """Opens a folder, read recursively."""
  del folders
  return folder_source.FolderSource(path, sources.PARTS[example])


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
    self._left_out = omissions.Omissions()
    self.problems: dict[str, str] = {}
    self._keys: list[list[str]] = []
    self._stamps: list[str] = []
    offsets, sizes, shards, rows = [], [], [], []
    prepared.note_missing(self._paths, self._left_out)
    for shard, path in enumerate(self._paths):
      index = tar_index.load(path, index_dir)
      self._keys.append(index.keys)
      self._stamps.append(index.stamp)
      # One more entry for the member −1 of a sample that lacks a part.
      all_offsets, all_sizes = np.append(index.offsets, -1), np.append(index.sizes, 0)
      members = np.stack([index.select(suffixes) for suffixes in parts.values()], axis=1)
      usable = (members >= 0) & (all_sizes[members] > 0)
      complete = np.flatnonzero(usable.all(axis=1))
      self._note(path, index, members, usable, parts)
      offsets.append(all_offsets[members[complete]])
      sizes.append(all_sizes[members[complete]])
      shards.append(np.full(len(complete), shard, np.int32))
      rows.append(complete.astype(np.int32))
    self._offsets, self._sizes = np.concatenate(offsets), np.concatenate(sizes)
    self._shards, self._rows = np.concatenate(shards), np.concatenate(rows)

  def _note(
      self, path: str, index: tar_index.TarIndex, members: np.ndarray, usable: np.ndarray,
      parts: sources.Parts) -> None:
    """Counts what a tar holds and no record has."""
    for member, reason in index.faults:
      self._left_out.add(reason, f"{member} in {path}", bad=reason != omissions.HIDDEN)
    if index.problem:
      self.problems[path] = index.problem
      done = os.path.getsize(path) - index.unread if "://" not in path else 0
      lost = round(len(index) * index.unread / done) if done else 0
      self._left_out.add("records of a broken tar (estimate)", f"{path}: {index.problem}", max(1, lost))
    for suffixes in parts.values():
      for row, count in index.repeats(suffixes):
        self._left_out.add(omissions.SECOND, f"{index.keys[row]} in {path}", count, bad=False)
    for row in np.flatnonzero(~usable.all(axis=1)):
      suffixes = list(index.members(row))
      name = f"{index.keys[row]}.{suffixes[0]}" if suffixes else index.keys[row]
      reason, bad = _reason(name, suffixes, parts, members[row], usable[row])
      self._left_out.add(reason, f"{name} in {path}", bad=bad)

  def left_out(self) -> omissions.Omissions:
    return self._left_out

  def stamps(self) -> Sequence[str]:
    return self._stamps

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
    path, key = self._paths[shard], self._keys[shard][int(self._rows[index])]
    parts = {}
    for part, offset, size in zip(self._parts, self._offsets[index], self._sizes[index]):
      if size > files.MAX_FILE_BYTES:
        raise decode.BadRecordError(f"{part} of {key} in {path} has {size} bytes")
      parts[part] = files.read_range(path, int(offset), int(size), self._stamps[shard])
    return sources.Record(parts, key, path)


def _reason(
    name: str, suffixes: Sequence[str], parts: sources.Parts, members: np.ndarray, usable: np.ndarray
) -> tuple[str, bool]:
  """Returns why a sample of a tar is no record, and whether that is bad."""
  if (members < 0).all():
    reason, bad = omissions.of_stranger(name, parts, sources.IMAGE_SUFFIXES)
    if bad and suffixes and "." in suffixes[0]:
      reason += " (in tars a key ends at its first dot)"
    return reason, bad
  if ((members >= 0) & ~usable).any():
    return omissions.EMPTY, True
  part = list(parts)[int(np.flatnonzero(members < 0)[0])]
  return omissions.of_incomplete(name, part, parts[part])


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
    self._stamps = [files.stamp(path) for path in self._paths]
    self._left_out = omissions.Omissions()
    prepared.note_missing(self._paths, self._left_out)
    super().__init__()

  def left_out(self) -> omissions.Omissions:
    return self._left_out

  def stamps(self) -> Sequence[str]:
    return self._stamps

  def _check_stamps(self, seconds: float = 0.0) -> None:
    """Raises files.ChangedError if a file changed since the opening; at most once in `seconds`."""
    now = time.monotonic()
    if now - self._checked >= seconds:
      for path, stamp in zip(self._paths, self._stamps):
        files.check_stamp(path, stamp)
      self._checked = now

  def _open(self) -> Any:
    if self._reader is None:
      from array_record.python import array_record_data_source

      self._checked = -math.inf
      self._check_stamps()

      try:
        self._reader = array_record_data_source.ArrayRecordDataSource(self._paths)
        len(self._reader)  # reads the ends of the files
      except RuntimeError as error:
        paths = ", ".join(self._paths[:5]) + (" …" if len(self._paths) > 5 else "")
        raise ValueError(f"one of {paths} is not an ArrayRecord file, or broken: {error}") from error
    return self._reader

  def __getitem__(self, index: int) -> sources.Record:
    key, shard = str(index), ",".join(self._paths[:1])
    reader = self._open()
    self._check_stamps(_CHECK_SECONDS)
    try:
      data = reader[index]
    except RuntimeError as error:
      self._check_stamps()
      raise decode.BadRecordError(f"record {index} of {shard} … is broken: {error}") from error
    if _is_map(data):
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


def _is_map(data: bytes) -> bool:
  """Returns whether a record is a msgpack map; the byte of a map of 9 entries also begins a PNG."""
  return data[:1] in _MAPS and not data.startswith(b"\x89PNG")


class TfdsSource(_ReaderSource):
  """A tensorflow-datasets split stored as ArrayRecord, images left encoded; features name the parts."""

  def __init__(self, name: str, split: str, data_dir: str | None = None, *, parts: sources.Parts):
    self._args, self._parts = (name, split, data_dir), tuple(parts)
    super().__init__()
    known = self._open()[0] if self._length else dict.fromkeys(self._parts)
    if missing := sorted(set(self._parts) - set(known)):
      raise ValueError(f"tfds {name}:{split} has no {', '.join(missing)}; its features are "
                       f"{', '.join(sorted(known))}")

  def _open(self) -> Any:
    if self._reader is None:
      import tensorflow_datasets as tfds  # works without TensorFlow

      name, split, data_dir = self._args
      self._reader = tfds.data_source(
          name, split=split, data_dir=data_dir,
          decoders={part: tfds.decode.SkipDecoding() for part in self._parts if "image" in part})
    return self._reader

  def __getitem__(self, index: int) -> sources.Record:
    shard = ":".join(self._args[:2])
    try:
      element = self._open()[index]
      parts = {part: _to_bytes(element[part]) for part in self._parts}
    except (RuntimeError, TypeError) as error:
      raise decode.BadRecordError(f"record {index} of {shard} is broken: {error}") from error
    return sources.Record(parts, str(index), shard)


def _to_bytes(value: Any) -> bytes:
  """Returns the bytes of a part; a number (a label) becomes its digits, as in the `cls` files of tars."""
  if isinstance(value, (bytes, str)):
    return value.encode() if isinstance(value, str) else value
  if isinstance(value, (int, np.integer)):
    return str(int(value)).encode()
  raise TypeError(f"a part is of type {type(value).__name__}, not bytes or text")
