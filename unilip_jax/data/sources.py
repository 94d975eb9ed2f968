"""Random-access sources of encoded images: tars, folders, ArrayRecord files, tensorflow-datasets.

A source is pickled into worker processes and opens its files there. `source[i]` is a Record; nothing
is decoded here. Importing this module starts no accelerator.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import glob
import os
from typing import Any, Protocol

from etils import epath
import msgpack
import numpy as np

from unilip_jax.data import tar_index

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
KINDS = ("tar", "folder", "array_record", "tfds", "blocks")
_OPEN_FILES = 64  # descriptors a process keeps


@dataclasses.dataclass(frozen=True)
class Record:
  """One encoded image.

  Attributes:
    image: the file's bytes.
    key: of the record in its shard.
    shard: the file or folder it stands in.
  """

  image: bytes
  key: str
  shard: str


class Source(Protocol):
  """What the stream reads."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


def make(kind: str, path: str, *, workdir: str, index_dir: str) -> Source:
  """Opens a source.

  Args:
    kind: of KINDS.
    path: tar and array_record: a file or pattern, comma-separated; folder: a folder, read
      recursively; tfds: "name:split" or "name:split:data_dir"; blocks: "train" or "test", rendered
      into the workdir when absent.
    workdir: of the run.
    index_dir: where tar indices are cached.

  Raises:
    ValueError: for an unknown kind, or a source without images.
    FileNotFoundError: if nothing matches `path`.
  """
  if kind == "blocks":
    from unilip_jax.blocks import write

    tars = write.ensure_tars(epath.Path(workdir) / "blocks", path)
    source: Source = TarSource([os.fspath(p) for p in tars], index_dir)
  elif kind == "tar":
    source = TarSource(expand(path), index_dir)
  elif kind == "folder":
    source = FolderSource(path)
  elif kind == "array_record":
    source = ArrayRecordSource(expand(path))
  elif kind == "tfds":
    source = TfdsSource(*path.split(":", 2))
  else:
    raise ValueError(f"unknown kind of data {kind!r}; choose one of {', '.join(KINDS)}")
  if not len(source):
    raise ValueError(f"{kind} {path} holds no images (suffixes {', '.join(IMAGE_SUFFIXES)})")
  return source


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
  """Samples of WebDataset tars that have an image member."""

  def __init__(self, paths: Sequence[str], index_dir: str, suffixes: Sequence[str] = IMAGE_SUFFIXES):
    self._paths = list(paths)
    self._keys: list[list[str]] = []
    offsets, sizes, shards, rows = [], [], [], []
    self.problems: dict[str, str] = {}
    for shard, path in enumerate(self._paths):
      index = tar_index.load(path, index_dir)
      if index.problem:
        self.problems[path] = index.problem
      columns = [index.suffixes.index(s) for s in suffixes if s in index.suffixes]
      self._keys.append(index.keys)
      if not columns:
        continue
      present = index.offsets[:, columns] >= 0
      first = np.array(columns)[present.argmax(1)]  # the first suffix that a sample has
      keep = np.flatnonzero(present.any(1))
      offsets.append(index.offsets[keep, first[keep]])
      sizes.append(index.sizes[keep, first[keep]])
      shards.append(np.full(len(keep), shard, np.int32))
      rows.append(keep)
    join = lambda parts, dtype: np.concatenate(parts) if parts else np.zeros(0, dtype)
    self._offsets, self._sizes = join(offsets, np.int64), join(sizes, np.int64)
    self._shards, self._rows = join(shards, np.int32), join(rows, np.int64)

  def __len__(self) -> int:
    return len(self._offsets)

  def __getitem__(self, index: int) -> Record:
    shard = int(self._shards[index])
    path = self._paths[shard]
    data = read_range(path, int(self._offsets[index]), int(self._sizes[index]))
    return Record(data, self._keys[shard][int(self._rows[index])], path)


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
  """Image files below a folder, sorted by path."""

  def __init__(self, folder: str):
    self._folder = epath.Path(folder).expanduser()
    if not self._folder.is_dir():
      raise FileNotFoundError(f"{folder} is no folder; see docs/data.md for the layouts")
    bare = lambda p: os.fspath(p).rpartition("://")[2]  # walks of buckets drop the scheme
    root = bare(self._folder)
    self._files = sorted(
        os.path.relpath(os.path.join(bare(place), name), root)
        for place, _, names in self._folder.walk() for name in names
        if name.lower().rpartition(".")[2] in IMAGE_SUFFIXES)

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> Record:
    name = self._files[index]
    return Record((self._folder / name).read_bytes(), name, os.fspath(self._folder))


class ArrayRecordSource:
  """Records of ArrayRecord files: an encoded image, or a msgpack map with one under "image"."""

  def __init__(self, paths: Sequence[str]):
    self._paths = list(paths)
    self._open: Callable[[], Any] | Any = None
    self._length = len(self._source())

  def _source(self) -> Any:
    if self._open is None:
      from array_record.python import array_record_data_source

      self._open = array_record_data_source.ArrayRecordDataSource(self._paths)
    return self._open

  def __getstate__(self):
    return self.__dict__ | {"_open": None}

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Record:
    data = self._source()[index]
    if data[:1] in (b"\x81", b"\x82", b"\x83", b"\x84", b"\x85", b"\x86"):  # msgpack's small maps
      data = msgpack.unpackb(data)["image"]
    return Record(data, str(index), ",".join(self._paths[:1]))


class TfdsSource:
  """A tensorflow-datasets split stored as ArrayRecord, images left encoded."""

  def __init__(self, name: str, split: str, data_dir: str | None = None):
    self._args = (name, split, data_dir)
    self._open: Any = None
    self._length = len(self._source())

  def _source(self) -> Any:
    if self._open is None:
      import tensorflow_datasets as tfds  # needs no TensorFlow for this

      name, split, data_dir = self._args
      self._open = tfds.data_source(
          name, split=split, data_dir=data_dir, decoders={"image": tfds.decode.SkipDecoding()})
    return self._open

  def __getstate__(self):
    return self.__dict__ | {"_open": None}

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Record:
    element = self._source()[index]
    return Record(bytes(element["image"]), str(index), ":".join(self._args[:2]))
