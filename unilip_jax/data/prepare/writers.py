"""Writes shards: WebDataset tars, or ArrayRecord files of msgpack maps, in the layouts of source_kinds.py.

A shard is written under a temporary name in the same folder tree, then renamed: a file with a shard's name
is complete. Its bytes depend on its samples alone, not on times or owners.
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
PARTIAL = "partial"  # folder of files that are being written
_OVERHEAD = 1024  # bytes of a part's header and padding
_BLOCK = 1 << 20


class Writer(Protocol):
  """Writes one shard."""

  def add(self, sample: record.Sample) -> None:
    """Appends a sample."""

  def finish(self) -> tuple[int, str]:
    """Closes and renames the file; returns (bytes, SHA-256)."""

  def abort(self) -> None:
    """Removes the temporary file."""


def payload(sample: record.Sample) -> int:
  """Returns about how many bytes a sample occupies in a shard; equal for both layouts."""
  return sum(len(data) + _OVERHEAD for _, data in sample.parts.values())


def open_shard(layout: str, folder: epath.Path, name: str) -> Writer:
  """Opens a writer of folder/name.

  Raises:
    ValueError: for an unknown layout.
  """
  if layout == "tar":
    return _Tar(folder, name)
  if layout == "array_record":
    return _ArrayRecord(folder, name)
  raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")


def _partial(folder: epath.Path, name: str) -> epath.Path:
  """Returns a path that no other process or machine writes to."""
  path = folder / PARTIAL / f"{name}.{uuid.uuid4().hex}"
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def write_atomically(folder: epath.Path, name: str, data: bytes) -> None:
  """Writes folder/name to a temporary name, then renames it."""
  temporary = _partial(folder, name)
  temporary.write_bytes(data)
  temporary.replace(folder / name)


class _Hashed:
  """A writable file that counts and hashes its bytes."""

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
  """Writes a tar of the samples' parts."""

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
  """Writes maps {"key", part: bytes}, uncompressed since images are compressed already."""

  def __init__(self, folder: epath.Path, name: str):
    from array_record.python import array_record_module

    self._path, self._temporary = folder / name, _partial(folder, name)
    self._remote = "://" in os.fspath(folder)  # the library writes local files only
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
  """Returns (bytes, SHA-256) of a file, read in blocks."""
  digest, length = hashlib.sha256(), 0
  with path.open("rb") as f:
    while block := f.read(_BLOCK):
      digest.update(block)
      length += len(block)
  return length, digest.hexdigest()
