"""Indexes WebDataset tars: the offset of each member, so that tars are read at random without conversion.

Members that share a key (the name up to the first dot of its last part) are one sample. Of members with
the same name the first counts. The index of a tar is cached as one npz file in an index folder; its name
has a hash of the tar's path. It is used while the tar's size and modification time do not change.
"""

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from typing import BinaryIO
import zipfile
import zlib

from absl import logging
from etils import epath
import numpy as np

from unilip_jax.common import atomic_io, paths

_FORMAT = 2
_MAX_HEADER = 1 << 20  # bytes of a long name or of pax records
_MAX_TRAILER = 1 << 20  # bytes after the end mark that are checked


@dataclasses.dataclass(frozen=True)
class TarIndex:
  """Samples of one tar.

  Attributes:
    keys: of the samples, in the tar's order.
    suffixes: of the members, without the leading dot, e.g. "jpg".
    offsets: int64[samples, suffixes] of the members' bytes; -1 where a sample lacks one.
    sizes: int64[samples, suffixes] in bytes.
    problem: why the tar is read up to a break only; "" for a sound tar.
    faults: "member: reason" of the members that are left out.
  """

  keys: list[str]
  suffixes: list[str]
  offsets: np.ndarray
  sizes: np.ndarray
  problem: str
  faults: list[str] = dataclasses.field(default_factory=list)

  def __len__(self) -> int:
    return len(self.keys)


def load(path: epath.PathLike, index_dir: epath.PathLike) -> TarIndex:
  """Reads the index of a tar from the cache, or builds and caches it.

  Args:
    path: of the tar, local or gs://.
    index_dir: cache folder.

  Returns:
    The index; for a broken tar that of its readable beginning, with `problem` set.
  """
  path = epath.Path(path)
  stamp = f"{_FORMAT}:{stamp_of(path)}"
  digest = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:16]
  cached = paths.path(index_dir, "data.index_dir") / f"{path.name}.{digest}.npz"
  if cached.exists():
    index = _read_cache(cached, stamp)
    if index is not None:
      return index
  index = build(path)
  if index.problem:
    logging.warning("%s: %s; %d samples are readable", path, index.problem, len(index))
  for fault in index.faults:
    logging.warning("%s: left out: %s", path, fault)
  cached.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  np.savez(
      buffer, stamp=stamp, offsets=index.offsets, sizes=index.sizes,
      names=np.array(json.dumps([index.keys, index.suffixes, index.problem, index.faults])))
  atomic_io.write(cached, buffer.getvalue())
  return index


def stamp_of(path: epath.PathLike) -> str:
  """Returns size and modification time; the time in nanoseconds if the file system has them."""
  if "://" in os.fspath(path):
    stat = epath.Path(path).stat()
    return f"{stat.length}:{stat.mtime}"
  local = os.stat(path)
  return f"{local.st_size}:{local.st_mtime_ns}"


def _read_cache(path: epath.Path, stamp: str) -> TarIndex | None:
  """Reads a cached index; returns None if it is unreadable or has another stamp."""
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as z:
      if str(z["stamp"]) != stamp:
        return None
      keys, suffixes, problem, faults = json.loads(str(z["names"]))
      index = TarIndex(keys, suffixes, z["offsets"], z["sizes"], problem, faults)
      if not index.offsets.shape == index.sizes.shape == (len(keys), len(suffixes)):
        raise ValueError(f"offsets of shape {index.offsets.shape}")
      return index
  except (OSError, EOFError, ValueError, TypeError, KeyError, NotImplementedError, RuntimeError,
          zipfile.BadZipFile, zlib.error) as error:
    logging.warning("index %s is unreadable (%s) and is built again", path, error)
    return None


class _Member(tarfile.TarInfo):
  """A tar header with checked sizes: none is negative, no header is larger than _MAX_HEADER."""

  def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
    long = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE)
    if self.size < 0 or (self.type in long and self.size > _MAX_HEADER):
      raise tarfile.SubsequentHeaderError(f"a header of {self.size} bytes at byte {self.offset}")
    return super()._proc_member(tar)


def build(path: epath.PathLike) -> TarIndex:
  """Builds the index from a tar's headers; see `load`."""
  path = epath.Path(path)
  length = path.stat().length
  samples: dict[str, dict[str, tuple[int, int]]] = {}
  faults: list[str] = []
  problem, end = "", 0
  with path.open("rb") as f:
    try:
      with tarfile.open(fileobj=f, mode="r:", tarinfo=_Member) as tar:
        for member in tar:
          if member.size < 0 or tar.offset <= end:
            problem = f"broken header of {member.name!r}: its size points backwards"
            break
          end = tar.offset
          if not member.isfile():
            if not member.isdir():
              faults.append(f"{member.name}: no file: of type {member.type!r}")
            continue
          if member.issparse():
            faults.append(f"{member.name}: sparse file: its bytes are not contiguous")
            continue
          if member.offset_data + member.size > length:
            problem = f"truncated inside {member.name}"
            break
          key, suffix = split_name(member.name)
          files = samples.setdefault(key, {})
          if suffix in files:
            faults.append(f"{member.name}: repeated: an earlier member has this name")
          else:
            files[suffix] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError) as error:
      problem = f"{type(error).__name__}: {error}"
    if length == 0:
      problem = "the tar is empty (0 bytes)"
    problem = problem or _wrong_end(f, end, length)
  suffixes = sorted({s for members in samples.values() for s in members})
  offsets = np.full((len(samples), len(suffixes)), -1, np.int64)
  sizes = np.zeros((len(samples), len(suffixes)), np.int64)
  column = {s: i for i, s in enumerate(suffixes)}
  for row, members in enumerate(samples.values()):
    for suffix, (offset, size) in members.items():
      offsets[row, column[suffix]], sizes[row, column[suffix]] = offset, size
  return TarIndex(list(samples), suffixes, offsets, sizes, problem, faults)


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
