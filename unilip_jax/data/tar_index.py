"""Indexes WebDataset tars: the offset of each member, so that tars are read at random without conversion.

Members that share a key (the name up to the first dot of its last part) are one sample. Of members with
the same name the first counts; links are resolved. An index takes memory in proportion to the members.

The index of a tar is cached as one npz file in an index folder. Its name and its contents hold a hash of
the tar's size, modification time and a sample of its bytes, not of its path: an index serves the same tar
under another path, and no other tar under the same path.
"""

import array
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import io
import json
import os
import posixpath
import tarfile
from typing import Any, BinaryIO
import zipfile
import zlib

from absl import logging
from etils import epath
import numpy as np

from unilip_jax.common import atomic_io, paths
from unilip_jax.data import files, omissions

_FORMAT = 3
_MAX_HEADER = 1 << 20  # bytes of a long name or of pax records
_MAX_TRAILER = 1 << 20  # bytes after the end mark that are checked
_MAX_LINKS = 16  # of a link that points to a link …
_SAMPLE = 4096  # bytes of a tar's beginning, middle and end that identify it
_MAX_NAME = 80  # characters of a tar's name in its index's


@dataclasses.dataclass(frozen=True)
class TarIndex:
  """Samples of one tar; entry i of the arrays is one member, ordered by sample.

  Attributes:
    keys: of the samples, in the tar's order.
    suffixes: of the members, without the leading dot, e.g. "jpg".
    rows: int32[members], index in `keys`.
    columns: int32[members], index in `suffixes`.
    offsets: int64[members] of the members' bytes.
    sizes: int64[members] in bytes.
    problem: why the tar is read up to a break only; "" for a sound tar.
    faults: (member, reason) of the members that are left out.
    unread: bytes after a break.
    stamp: of the file, see files.stamp.
  """

  keys: list[str]
  suffixes: list[str]
  rows: np.ndarray
  columns: np.ndarray
  offsets: np.ndarray
  sizes: np.ndarray
  problem: str
  faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  unread: int = 0
  stamp: str = ""

  def __len__(self) -> int:
    return len(self.keys)

  @functools.cached_property
  def _starts(self) -> np.ndarray:
    """int64[samples + 1]: index of each sample's first member."""
    return np.searchsorted(self.rows, np.arange(len(self.keys) + 1))

  def members(self, row: int) -> dict[str, tuple[int, int]]:
    """Returns {suffix: (offset, size)} of a sample."""
    return {self.suffixes[self.columns[i]]: (int(self.offsets[i]), int(self.sizes[i]))
            for i in range(self._starts[row], self._starts[row + 1])}

  def select(self, suffixes: Sequence[str]) -> np.ndarray:
    """Returns int64[samples]: the member of each sample with the first of `suffixes`; -1 for none."""
    rank = np.full(len(self.suffixes) + 1, len(suffixes), np.int32)
    wanted = {suffix: i for i, suffix in enumerate(suffixes)}
    for column, suffix in enumerate(self.suffixes):
      rank[column] = wanted.get(suffix, len(suffixes))
    ranks = rank[self.columns]
    best = np.full(len(self.keys), len(suffixes), np.int32)
    np.minimum.at(best, self.rows, ranks)
    chosen = np.flatnonzero((ranks < len(suffixes)) & (ranks == best[self.rows]))
    members = np.full(len(self.keys), -1, np.int64)
    members[self.rows[chosen]] = chosen
    return members

  def repeats(self, suffixes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields (sample, n) of each sample with n more members of these suffixes than one."""
    wanted = np.array([suffix in suffixes for suffix in self.suffixes], bool)
    counts = np.bincount(self.rows[wanted[self.columns]], minlength=len(self.keys)) if len(wanted) else []
    for row in np.flatnonzero(np.asarray(counts) > 1):
      yield int(row), int(counts[row]) - 1


def load(path: epath.PathLike, index_dir: epath.PathLike) -> TarIndex:
  """Reads the index of a tar from the cache, or builds and caches it.

  Args:
    path: of the tar, local or gs://.
    index_dir: cache folder.

  Returns:
    The index; for a broken tar that of its readable beginning, with `problem` set.

  Raises:
    ValueError: if the path is no file, or the tar changes while it is indexed.
  """
  path = epath.Path(path)
  stamp = files.stamp(path)
  identity = _identity(path, stamp)
  cached = paths.path(index_dir, "data.index_dir") / f"{path.name[:_MAX_NAME]}.{identity[:16]}.npz"
  if cached.exists():
    index = _read_cache(cached, identity)
    if index is not None:
      return dataclasses.replace(index, stamp=stamp)
  index = dataclasses.replace(build(path), stamp=stamp)
  if files.stamp(path) != stamp:
    raise files.ChangedError(f"{path} changed while it was indexed: wait until it is written completely, "
                             "then start again")
  cached.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  names = json.dumps([index.keys, index.suffixes, index.problem, index.faults, index.unread])
  np.savez(buffer, identity=identity, names=np.frombuffer(names.encode(), np.uint8), rows=index.rows,
           columns=index.columns, offsets=index.offsets, sizes=index.sizes)
  atomic_io.write(cached, buffer.getvalue())
  return index


def _identity(path: epath.Path, stamp: str) -> str:
  """Returns a hash of what a tar is; of remote ones, whose objects do not change, without their bytes."""
  digest = hashlib.sha256(f"{_FORMAT}\n{stamp}\n".encode())
  if "://" in os.fspath(path):
    digest.update(os.fspath(path).encode())
  else:
    length = int(stamp.partition(":")[0])
    with path.open("rb") as f:
      for offset in (0, length // 2, max(0, length - _SAMPLE)):
        f.seek(offset)
        digest.update(f.read(_SAMPLE))
  return digest.hexdigest()


def _read_cache(path: epath.Path, identity: str) -> TarIndex | None:
  """Reads a cached index; returns None if it is unreadable or that of another tar."""
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as z:
      if str(z["identity"]) != identity:
        return None
      keys, suffixes, problem, faults, unread = json.loads(z["names"].tobytes())
      index = TarIndex(keys, suffixes, z["rows"], z["columns"], z["offsets"], z["sizes"], problem,
                       [(member, reason) for member, reason in faults], int(unread))
    _check(index)
    return index
  except (OSError, EOFError, ValueError, TypeError, KeyError, NotImplementedError, RuntimeError,
          zipfile.BadZipFile, zlib.error) as error:
    logging.warning("index %s is unreadable (%s) and is built again", path, error)
    return None


def _check(index: TarIndex) -> None:
  """Raises ValueError for an index that is not one of `build`."""
  arrays: Mapping[str, tuple[np.ndarray, Any]] = {
      "rows": (index.rows, len(index.keys)), "columns": (index.columns, len(index.suffixes)),
      "offsets": (index.offsets, None), "sizes": (index.sizes, None)}
  for name, (values, limit) in arrays.items():
    if values.shape != index.offsets.shape or values.ndim != 1 or values.dtype.kind != "i":
      raise ValueError(f"{name} of shape {values.shape}, {values.dtype}")
    if len(values) and (values.min() < 0 or (limit is not None and values.max() >= limit)):
      raise ValueError(f"{name} out of range")
  if not all(isinstance(text, str) for text in [*index.keys, *index.suffixes, index.problem]):
    raise ValueError("names that are no text")


class _Member(tarfile.TarInfo):
  """A tar header with checked sizes: none is negative, no header is larger than _MAX_HEADER."""

  def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
    long = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE)
    if self.size < 0 or (self.type in long and self.size > _MAX_HEADER):
      raise tarfile.SubsequentHeaderError(f"a header of {self.size} bytes at byte {self.offset}")
    return super()._proc_member(tar)


class _Members:
  """Collects the members of a tar."""

  def __init__(self):
    self._keys: dict[str, int] = {}
    self._suffixes: dict[str, int] = {}
    self._values = [array.array("q") for _ in range(4)]  # rows, columns, offsets, sizes
    self._places: dict[int, int] = {}  # row and column -> member
    self._links: list[tuple[str, str]] = []
    self.faults: list[tuple[str, str]] = []

  def add(self, member: tarfile.TarInfo) -> None:
    """Adds a member, or the reason why it is left out."""
    if member.isdir():
      return
    if omissions.is_hidden(member.name):
      self.faults.append((member.name, omissions.HIDDEN))
    elif member.issym() or member.islnk():
      folder = posixpath.dirname(member.name) if member.issym() else ""
      self._row(member.name)  # keeps the tar's order
      self._links.append((member.name, posixpath.normpath(posixpath.join(folder, member.linkname))))
    elif not member.isfile():
      self.faults.append((member.name, f"no file: of type {member.type!r}"))
    elif member.issparse():
      self.faults.append((member.name, "sparse file: its bytes are not contiguous"))
    else:
      self._add(member.name, member.offset_data, member.size)

  def _row(self, name: str) -> int:
    return self._keys.setdefault(split_name(name)[0], len(self._keys))

  def _add(self, name: str, offset: int, size: int) -> None:
    suffix = split_name(name)[1]
    row, column = self._row(name), self._suffixes.setdefault(suffix, len(self._suffixes))
    place = row << 32 | column
    if place in self._places:
      self.faults.append((name, omissions.REPEATED))
      return
    self._places[place] = len(self._values[0])
    for values, value in zip(self._values, (row, column, offset, size)):
      values.append(value)

  def _resolve(self) -> None:
    """Adds the bytes that links point to, also through other links."""
    targets = dict(self._links)
    normal = {posixpath.normpath(name): name for name in targets}
    for name, target in self._links:
      for _ in range(_MAX_LINKS):
        if target not in normal:
          break
        target = targets[normal[target]]
      member = self._find(target)
      if member is None:
        self.faults.append((name, "broken link: the tar does not hold its target"))
      else:
        self._add(name, self._values[2][member], self._values[3][member])

  def _find(self, name: str) -> int | None:
    for spelling in (name, f"./{name}"):
      key, suffix = split_name(spelling)
      if key in self._keys and suffix in self._suffixes:
        return self._places.get(self._keys[key] << 32 | self._suffixes[suffix])
    return None

  def index(self, problem: str, unread: int) -> TarIndex:
    """Returns the index of the members."""
    self._resolve()
    rows, columns, offsets, sizes = (np.frombuffer(v, np.int64) if v else np.zeros(0, np.int64)
                                     for v in self._values)
    order = np.argsort(rows, kind="stable")
    return TarIndex(
        list(self._keys), list(self._suffixes), rows[order].astype(np.int32),
        columns[order].astype(np.int32), offsets[order], sizes[order], problem, self.faults, unread)


def build(path: epath.PathLike) -> TarIndex:
  """Builds the index from a tar's headers; see `load`."""
  path = epath.Path(path)
  length = path.stat().length
  members = _Members()
  problem, end = "", 0
  with path.open("rb") as f:
    try:
      with tarfile.open(fileobj=f, mode="r:", tarinfo=_Member) as tar:
        while (member := tar.next()) is not None:
          tar.members.clear()  # of all members read so far
          if member.size < 0 or tar.offset <= end:
            problem = f"broken header of {member.name!r}: its size points backwards"
            break
          if member.isfile() and not member.issparse() and member.offset_data + member.size > length:
            problem = f"truncated inside {member.name}"
            break
          end = tar.offset
          members.add(member)
    except (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError) as error:
      problem = f"{type(error).__name__}: {error}"
    if length == 0:
      problem = "the tar is empty (0 bytes)"
    problem = problem or _wrong_end(f, end, length)
  return members.index(problem, length - end if problem else 0)


def _wrong_end(f: BinaryIO, end: int, length: int) -> str:
  """Returns what is wrong after the last member that was read; `tarfile` stops there silently."""
  if length < end + 2 * tarfile.BLOCKSIZE:
    return "no end-of-archive mark: truncated between members"
  f.seek(end)
  if any(f.read(tarfile.BLOCKSIZE)):
    return f"a broken header at byte {end}: {length - end} bytes from there on are not read"
  if any(f.read(_MAX_TRAILER)):
    return f"data after the end-of-archive mark at byte {end} (two tars in one file?) is not read"
  return ""


def split_name(name: str) -> tuple[str, str]:
  """Splits "a/b.input.jpg" into ("a/b", "input.jpg"), as WebDataset does; suffixes in lower case."""
  folder, _, base = name.rpartition("/")
  stem, _, suffix = base.partition(".")
  return (f"{folder}/{stem}" if folder else stem), suffix.lower()
