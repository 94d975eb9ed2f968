"""Reads the files below a folder as records.

Files with one name up to their suffix are one record: "photo 3.21.jpg" and "photo 3.21.txt" (a text may
also be "photo 3.21.jpg.txt"). Links are followed, each folder is read once. Hidden files and those of
operating systems are left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import os
import posixpath
import stat
import unicodedata

from etils import epath

from unilip_jax.common import paths
from unilip_jax.data import decode, files, omissions, sources

SIDECARS = ("txt", "caption", "json")  # texts of an image, the first one counts


class FolderSource(sources.Source):
  """Files below a folder, sorted by path.

  For examples that need an image alone, every image is a record.
  """

  def __init__(
      self, folder: str, parts: sources.Parts, may_lack: Callable[[str, str], bool] | None = None):
    """Lists the folder.

    Args:
      folder: local or gs://.
      parts: of a record.
      may_lack: tells of (part, first file of a record) whether the record is complete without the part;
        None: never.

    Raises:
      FileNotFoundError: if it is no folder.
    """
    self._folder = paths.path(folder)
    if not self._folder.is_dir():
      raise FileNotFoundError(f"{folder} is not a folder; see docs/data.md for the layouts")
    self._left_out = omissions.Omissions()
    names = dict(sorted(list_files(self._folder, self._left_out)))
    self._records = [
        {part: (name, names[name]) for part, name in record.items()}
        for record in _group(names, parts, self._left_out, may_lack or (lambda part, name: False))]

  def left_out(self) -> omissions.Omissions:
    return self._left_out

  def files(self, index: int) -> Mapping[str, str]:
    """Returns {part: path below the folder} of a record."""
    return {part: name for part, (name, _) in self._records[index].items()}

  def stamps(self) -> Sequence[str]:
    """Returns the stamp of each record's image; none for a remote folder."""
    stamps = [record["image"][1] for record in self._records if "image" in record]
    return stamps if all(stamps) else ()

  def without(self, part: str) -> "FolderSource":
    """Returns a source of the same records that does not read a part."""
    other = object.__new__(FolderSource)
    other.__dict__ = self.__dict__ | {"_records": [
        {name: file for name, file in record.items() if name != part} for record in self._records]}
    return other

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> sources.Record:
    record = self._records[index]
    try:
      parts = {part: files.read_file(self._folder / name, stamp) for part, (name, stamp) in record.items()}
    except files.ChangedError as error:
      raise decode.BadRecordError(str(error)) from error
    return sources.Record(parts, next(iter(record.values()))[0], os.fspath(self._folder))


def list_files(folder: epath.Path, left_out: omissions.Omissions) -> Iterator[tuple[str, str]]:
  """Yields (path below the folder, stamp) of each file that is not hidden; remote ones without stamp.

  Args:
    folder: local or gs://.
    left_out: counts hidden files and what cannot be read.
  """
  if "://" in os.fspath(folder):
    yield from _list_remote(folder, left_out)
    return
  root = os.fspath(folder)
  seen: set[tuple[int, int]] = set()
  # Links wait until the folder itself is listed, so that a record has the name without the link.
  pending, linked = [""], []
  while pending or linked:
    place = pending.pop() if pending else linked.pop(0)
    path = os.path.join(root, place)
    try:
      info = os.stat(path)
      if (info.st_dev, info.st_ino) in seen:
        left_out.add("folder that is read under another name", place, bad=False)
        continue
      seen.add((info.st_dev, info.st_ino))
      with os.scandir(path) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
      left_out.add(f"unreadable folder ({error.strerror})", place or root)
      continue
    for entry in entries:
      name = posixpath.join(place, entry.name)
      if omissions.is_hidden(entry.name):
        left_out.add(omissions.HIDDEN, name, bad=False)
        continue
      try:
        info = entry.stat()
      except OSError as error:
        what = "broken link" if entry.is_symlink() else "unreadable file"
        left_out.add(f"{what} ({error.strerror})", name)
        continue
      if stat.S_ISDIR(info.st_mode):
        (linked if entry.is_symlink() else pending).append(name)
      elif kind := files.kind_of(info.st_mode):
        left_out.add(f"not a file but {kind}", name)
      else:
        yield name, files.stamp_of(info)


def _list_remote(folder: epath.Path, left_out: omissions.Omissions) -> Iterator[tuple[str, str]]:
  bare = lambda p: os.fspath(p).rpartition("://")[2]  # walks of buckets drop the scheme
  root = bare(folder)
  for place, _, names in folder.walk():
    for name in names:
      name = os.path.relpath(os.path.join(bare(place), name), root)
      if omissions.is_hidden(name):
        left_out.add(omissions.HIDDEN, name, bad=False)
      else:
        yield name, ""


def _group(
    names: Mapping[str, str], parts: sources.Parts, left_out: omissions.Omissions,
    may_lack: Callable[[str, str], bool]
) -> list[dict[str, str]]:
  """Returns {part: file} of every record that is complete.

  Args:
    names: {file: stamp}, sorted.
    parts: of a record.
    left_out: counts the other files.
    may_lack: see FolderSource.
  """
  wanted = {suffix: (part, rank) for part, suffixes in parts.items()
            for rank, suffix in enumerate(suffixes)}
  keys: dict[str, str] = {}  # of the files that are a part
  groups: dict[str, dict[str, list[tuple[int, str]]]] = {}
  strangers = []
  for name, stamp in names.items():
    key, suffix = _split(name, wanted)
    if not suffix:
      strangers.append(name)
    elif stamp.startswith("0:"):
      left_out.add(omissions.EMPTY, name)
    else:
      # A text may have the name of its image with the suffix; in sorted order the image precedes it.
      key = name if len(parts) == 1 else keys.get(key, key)
      keys[name] = key
      part, rank = wanted[suffix]
      groups.setdefault(key, {}).setdefault(part, []).append((rank, name))
  stems = {stem for name in keys for stem in (_stem(name), _normal(name))}
  for name in strangers:
    if name.rpartition(".")[2].lower() in SIDECARS and _stem(name) in stems:
      continue  # a text of an image: nothing is left out where the example needs the image alone
    reason, bad = omissions.of_stranger(name, parts, sources.IMAGE_SUFFIXES)
    left_out.add(reason, name, bad=bad)
  records = []
  for group in groups.values():
    first = min(name for found in group.values() for _, name in found)
    for found in group.values():
      found.sort()
      for _, name in found[1:]:
        left_out.add(omissions.SECOND, name, bad=False)
    missing = [part for part in parts if part not in group and not may_lack(part, first)]
    if missing:
      reason, bad = omissions.of_incomplete(first, missing[0], parts[missing[0]])
      left_out.add(reason, first, bad=bad)
    else:
      records.append({part: group[part][0][1] for part in parts if part in group})
  return records


def _split(name: str, wanted: Mapping[str, object]) -> tuple[str, str]:
  """Returns (name without suffix, suffix) with the longest of the wanted suffixes; "" for none."""
  folder, base = posixpath.split(name)
  pieces = base.split(".")
  for count in (2, 1):
    suffix = ".".join(pieces[-count:]).lower()
    if len(pieces) > count and suffix in wanted:
      stem = posixpath.join(folder, ".".join(pieces[:-count]))
      return _normal(stem), suffix
  return name, ""


def _stem(name: str) -> str:
  return _normal(posixpath.splitext(name)[0])


def _normal(name: str) -> str:
  return unicodedata.normalize("NFC", name)
