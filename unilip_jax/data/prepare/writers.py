"""Shards: WebDataset tars, or ArrayRecord files of msgpack maps, in the layouts that sources.py reads.

A shard is written under another name in the same folder tree and renamed when it is whole, so that a
file that has its name is complete. Its bytes depend on its samples alone: no times, no owners.
"""

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from typing import Any, Protocol
import uuid

from etils import epath
import msgpack

from unilip_jax.data.prepare import record

LAYOUTS = {"tar": "tar", "array_record": "array_record"}  # {layout: suffix of its files}
PARTIAL = "partial"  # folder of the files that are being written
_OVERHEAD = 1024  # bytes of a part besides its own: header and padding
_BLOCK = 1 << 20


class Writer(Protocol):
  """What shard.py writes to."""

  def add(self, sample: record.Sample) -> None: ...

  def finish(self) -> tuple[int, str]:
    """Ends the file and gives it its name; (bytes, SHA-256)."""

  def abort(self) -> None:
    """Leaves nothing behind."""


def payload(sample: record.Sample) -> int:
  """About how many bytes a sample takes up in a shard; the same for both layouts."""
  return sum(len(data) + _OVERHEAD for _, data in sample.parts.values())


def open_shard(layout: str, folder: epath.Path, name: str) -> Writer:
  """A writer of folder/name.

  Raises:
    ValueError: for an unknown layout.
  """
  if layout == "tar":
    return _Tar(folder, name)
  if layout == "array_record":
    return _ArrayRecord(folder, name)
  raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")


def _partial(folder: epath.Path, name: str) -> epath.Path:
  """A place that no other process or machine writes to."""
  path = folder / PARTIAL / f"{name}.{uuid.uuid4().hex}"
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def write_whole(folder: epath.Path, name: str, data: bytes) -> None:
  """Writes folder/name so that it is there wholly or not at all."""
  temporary = _partial(folder, name)
  temporary.write_bytes(data)
  temporary.replace(folder / name)


class _Hashed:
  """A file to write to, counted and hashed."""

  def __init__(self, file: Any):
    self._file, self._digest, self.length = file, hashlib.sha256(), 0

  def write(self, data: bytes) -> int:
    self._digest.update(data)
    self.length += len(data)
    self._file.write(data)
    return len(data)

  def tell(self) -> int:
    return self.length

  def hexdigest(self) -> str:
    return self._digest.hexdigest()


class _Tar:

  def __init__(self, folder: epath.Path, name: str):
    self._path, self._temporary = folder / name, _partial(folder, name)
    self._file = self._temporary.open("wb")
    self._hashed = _Hashed(self._file)
    self._tar = tarfile.open(  # noqa: SIM115
        fileobj=self._hashed, mode="w", format=tarfile.USTAR_FORMAT)

  def add(self, sample: record.Sample) -> None:
    for suffix, data in sample.parts.values():
      member = tarfile.TarInfo(f"{sample.key}.{suffix}")  # of mode 0644, time 0, owner 0
      member.size = len(data)
      self._tar.addfile(member, io.BytesIO(data))

  def finish(self) -> tuple[int, str]:
    self._tar.close()
    self._file.close()
    self._temporary.replace(self._path)
    return self._hashed.length, self._hashed.hexdigest()

  def abort(self) -> None:
    self._file.close()
    self._temporary.unlink(missing_ok=True)


class _ArrayRecord:
  """One record is a map {"key", part: bytes}; images are compressed already, so the file is not."""

  def __init__(self, folder: epath.Path, name: str):
    from array_record.python import array_record_module

    self._path, self._temporary = folder / name, _partial(folder, name)
    self._remote = "://" in os.fspath(folder)  # the library writes to local files only
    handle, self._local = tempfile.mkstemp(suffix=f".{name}") if self._remote else (None, "")
    if handle is not None:
      os.close(handle)
    else:
      self._local = os.fspath(self._temporary)
    self._writer = array_record_module.ArrayRecordWriter(self._local, "group_size:1,uncompressed")

  def add(self, sample: record.Sample) -> None:
    values = {part: data for part, (_, data) in sample.parts.items()}
    self._writer.write(msgpack.packb({"key": sample.key} | values))

  def finish(self) -> tuple[int, str]:
    self._writer.close()
    length, digest = file_hash(epath.Path(self._local))
    if self._remote:
      with open(self._local, "rb") as source, self._temporary.open("wb") as target:
        shutil.copyfileobj(source, target, _BLOCK)
      os.unlink(self._local)
    self._temporary.replace(self._path)
    return length, digest

  def abort(self) -> None:
    if self._writer.is_open():
      self._writer.close()
    epath.Path(self._local).unlink(missing_ok=True)


def file_hash(path: epath.Path) -> tuple[int, str]:
  """(bytes, SHA-256) of a file, a piece at a time."""
  digest, length = hashlib.sha256(), 0
  with path.open("rb") as f:
    while block := f.read(_BLOCK):
      digest.update(block)
      length += len(block)
  return length, digest.hexdigest()
