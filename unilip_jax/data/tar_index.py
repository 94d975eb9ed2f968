"""Where each member of a WebDataset tar begins, so that tars are read at random without conversion.

Members that share a key (the name up to the first dot of its last part) are one sample. The index of
a tar is cached as one npz file, in an index folder, under a name that holds the tar's path; it is used
only while the tar's size and modification time are those it was made from.
"""

import dataclasses
import hashlib
import io
import os
import tarfile
import zipfile

from absl import logging
from etils import epath
import numpy as np

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class TarIndex:
  """Samples of one tar.

  Attributes:
    keys: of the samples, in the tar's order.
    suffixes: of the members, without the leading dot, e.g. "jpg".
    offsets: int64[samples, suffixes] of the members' bytes; -1 where a sample lacks one.
    sizes: int64[samples, suffixes] in bytes.
    problem: "" or what was wrong with the tar (it was read up to there).
  """

  keys: list[str]
  suffixes: list[str]
  offsets: np.ndarray
  sizes: np.ndarray
  problem: str

  def __len__(self) -> int:
    return len(self.keys)


def load(path: epath.PathLike, index_dir: epath.PathLike) -> TarIndex:
  """The index of a tar, from the cache if that is fresh.

  Args:
    path: of the tar, local or gs://.
    index_dir: where indices are cached.

  Returns:
    The index; of a broken tar, that of its readable beginning, with `problem` set.
  """
  path = epath.Path(path)
  stamp = f"{_FORMAT}:{_stamp(path)}"
  digest = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:16]
  cached = epath.Path(index_dir) / f"{path.name}.{digest}.npz"
  if cached.exists():
    found = _read_cache(cached, stamp)
    if found is not None:
      return found
  index = build(path)
  if index.problem:
    logging.warning("%s: %s; %d samples are readable", path, index.problem, len(index))
  cached.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  np.savez(
      buffer, stamp=stamp, keys=np.array("\n".join(index.keys)),
      suffixes=np.array("\n".join(index.suffixes)), offsets=index.offsets, sizes=index.sizes,
      problem=index.problem)
  # Several processes may write at once: each its own file, the rename is atomic.
  temporary = cached.with_name(f"{cached.name}.{os.getpid()}.tmp")
  temporary.write_bytes(buffer.getvalue())
  temporary.replace(cached)
  return index


def _stamp(path: epath.Path) -> str:
  """Size and modification time, the latter in nanoseconds where the file system has them."""
  if "://" in os.fspath(path):
    stat = path.stat()
    return f"{stat.length}:{stat.mtime}"
  local = os.stat(path)
  return f"{local.st_size}:{local.st_mtime_ns}"


def _read_cache(path: epath.Path, stamp: str) -> TarIndex | None:
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as z:
      if str(z["stamp"]) != stamp:
        return None
      return TarIndex(_lines(z["keys"]), _lines(z["suffixes"]), z["offsets"], z["sizes"],
                      str(z["problem"]))
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    logging.warning("index %s is unreadable (%s) and is made again", path, error)
    return None


def _lines(joined: np.ndarray) -> list[str]:
  text = str(joined)
  return text.split("\n") if text else []


def build(path: epath.PathLike) -> TarIndex:
  """Reads a tar's headers; see `load`."""
  path = epath.Path(path)
  length = path.stat().length
  samples: dict[str, dict[str, tuple[int, int]]] = {}
  problem, end = "", 0
  with path.open("rb") as f:
    try:
      with tarfile.open(fileobj=f, mode="r:") as tar:
        for member in tar:
          if not member.isfile():
            continue
          if member.offset_data + member.size > length:
            problem = f"truncated inside {member.name}"
            break
          end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
          key, suffix = split_name(member.name)
          samples.setdefault(key, {})[suffix] = (member.offset_data, member.size)
    except tarfile.TarError as error:
      problem = f"{type(error).__name__}: {error}"
  if not problem and length < end + 2 * tarfile.BLOCKSIZE:
    problem = "no end-of-archive mark: truncated between members"
  if length == 0:
    problem = "the tar is empty (0 bytes)"
  suffixes = sorted({s for members in samples.values() for s in members})
  offsets = np.full((len(samples), len(suffixes)), -1, np.int64)
  sizes = np.zeros((len(samples), len(suffixes)), np.int64)
  column = {s: i for i, s in enumerate(suffixes)}
  for row, members in enumerate(samples.values()):
    for suffix, (offset, size) in members.items():
      offsets[row, column[suffix]], sizes[row, column[suffix]] = offset, size
  return TarIndex(list(samples), suffixes, offsets, sizes, problem)


def split_name(name: str) -> tuple[str, str]:
  """"a/b.input.jpg" -> ("a/b", "input.jpg"), WebDataset's rule; suffixes in lower case."""
  folder, _, base = name.rpartition("/")
  stem, _, suffix = base.partition(".")
  return (f"{folder}/{stem}" if folder else stem), suffix.lower()
