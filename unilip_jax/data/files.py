"""Local and remote files: pattern expansion, and byte ranges read through a bounded cache of open files.

A stamp is a file's size and modification time. Readers compare it with that of the opening, so that a file
that changes during a run is an error with its name.
"""

import collections
import functools
import os
import stat
import time
from typing import Any

from absl import logging
from etils import epath
import fsspec

from unilip_jax.common import paths

_MAX_OPEN_FILES = 64  # per process
_REMOTE_CHECK_SECONDS = 60  # stamps of remote files are compared at most this often
MAX_FILE_BYTES = 1 << 30  # of one part of a record; a larger one is refused unread
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
          stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder"}


class ChangedError(ValueError):
  """A file of data changed during the run; the message names it."""


def expand(patterns: str) -> list[str]:
  """Lists the files that comma-separated patterns match, sorted within each pattern.

  Raises:
    FileNotFoundError: if a pattern matches nothing.
  """
  found: list[str] = []
  for pattern in paths.split(patterns):
    matches = paths.matches(pattern)
    if not matches:
      raise FileNotFoundError(f"no file matches {pattern}; see docs/data.md for the layouts")
    found += matches
  counts = collections.Counter(found)
  if len(counts) < len(found):
    path, count = counts.most_common(1)[0]
    logging.warning("files are matched more than once, e.g. %s %d times: their records are read as often",
                    path, count)
  return found


def is_file(path: epath.PathLike) -> bool:
  """Returns whether a path is a regular file; reading a pipe or a device might never end."""
  return paths.is_file(path)


def kind_of(mode: int) -> str:
  """Returns what a path of this `st_mode` is, e.g. "a named pipe"; "" for a regular file."""
  return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def stamp(path: epath.PathLike) -> str:
  """Returns size and modification time, in nanoseconds if the file system has them.

  Raises:
    ValueError: if the path is a folder, a pipe or a device.
    OSError: if it is absent or cannot be read.
  """
  text = os.fspath(path)
  if "://" in text:
    remote = epath.Path(text).stat()
    return f"{remote.length}:{remote.mtime}"
  info = os.stat(text)
  if kind := kind_of(info.st_mode):
    raise ValueError(f"{text} is {kind}, not a file; see docs/data.md for the layouts")
  return stamp_of(info)


def stamp_of(info: os.stat_result) -> str:
  """Returns the stamp of a local file's `stat`."""
  return f"{info.st_size}:{info.st_mtime_ns}"


def read_range(path: str, offset: int, size: int, expected: str = "") -> bytes:
  """Reads `size` bytes of a local or remote file, from `offset` on.

  Args:
    path: of the file.
    offset: in bytes.
    size: in bytes.
    expected: stamp that the file had when it was opened; "" compares nothing.

  Raises:
    ChangedError: if the file has another stamp, is absent or ends early.
    OSError: if it cannot be read, or ends early where `expected` is "".
  """
  if "://" in path:
    if expected:
      check_stamp(path, expected)
    system, name = fsspec.core.url_to_fs(path)
    data = system.cat_file(name, start=offset, end=offset + size)  # `open` would read 5 MiB ahead
  else:
    info = _stat(path)
    if expected and stamp_of(info) != expected:
      raise ChangedError(_change(path, expected, stamp_of(info)))
    # The reference keeps the file open while another thread evicts it from the cache.
    file = _open_cached(path, os.getpid(), _identity(info))
    data = os.pread(file.fileno(), size, offset)
  if len(data) != size:
    message = f"{path} ends inside bytes {offset} … {offset + size}: it was cut off, or is being written"
    raise ChangedError(message) if expected else OSError(message)
  return data


def read_file(path: epath.PathLike, expected: str = "") -> bytes:
  """Reads a complete local or remote file; `expected` as in `read_range`.

  Raises:
    ChangedError: if the file has another stamp.
    OSError: if it is absent or cannot be read, is a pipe or a device, or has more than 1 GiB.
  """
  text = os.fspath(path)
  if "://" in text:
    return epath.Path(text).read_bytes()
  info = os.stat(text)
  if kind := kind_of(info.st_mode):
    raise OSError(f"{text} is {kind}, not a file")
  if info.st_size > MAX_FILE_BYTES:
    raise OSError(f"{text} has {info.st_size} bytes, more than {MAX_FILE_BYTES}")
  if expected and stamp_of(info) != expected:
    raise ChangedError(_change(text, expected, stamp_of(info)))
  with open(text, "rb") as f:
    return f.read()


def check_stamp(path: str, expected: str) -> None:
  """Compares a file's stamp with that of its opening; of a remote file at most once a minute.

  Raises:
    ChangedError: if it differs, or the file is absent.
  """
  if "://" in path:
    now = _remote_stamp(path, int(time.monotonic() // _REMOTE_CHECK_SECONDS))
  else:
    now = stamp_of(_stat(path))
  if now != expected:
    raise ChangedError(_change(path, expected, now))


def _change(path: str, before: str, now: str) -> str:
  size, changed_size = before.partition(":")[0], now.partition(":")[0]
  what = "its modification time differs" if size == changed_size else (
      f"it had {size} bytes and has {changed_size}")
  return (f"{path} changed after it had been opened: {what}. Wait until it is written completely, then "
          "start again")


@functools.lru_cache(maxsize=1024)
def _remote_stamp(path: str, minute: int) -> str:
  del minute
  return stamp(path)


def _stat(path: str) -> os.stat_result:
  try:
    return os.stat(path)
  except FileNotFoundError as error:
    raise ChangedError(f"{path} was removed after it had been opened; put it back or start again with "
                       "other data") from error


def _identity(info: os.stat_result) -> tuple[int, ...]:
  return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


@functools.lru_cache(maxsize=_MAX_OPEN_FILES)
def _open_cached(path: str, process: int, identity: tuple[int, ...]) -> Any:
  """Opens a file; a replaced file, or one of this path in another working directory, is opened again."""
  del process  # a forked child must not share its parent's cache entry
  file = open(path, "rb", buffering=0)  # noqa: SIM115
  if _identity(os.fstat(file.fileno())) != identity:
    file.close()
    raise ChangedError(f"{path} changes while it is read")
  return file
