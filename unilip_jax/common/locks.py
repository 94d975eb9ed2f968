"""Locks that a kill does not leave behind: the operating system releases them when the process ends.

One command at a time writes to a workdir, or to a folder that appears when it is complete. Readers take no
lock. File systems without locks and object stores cannot refuse the second command: it is warned.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import socket
import sys
import time

from absl import logging
from etils import epath

from unilip_jax.common import paths

FILE = "unilip.lock"


class HeldError(ValueError):
  """Another command writes to the folder; the message names it."""


@contextlib.contextmanager
def workdir(folder: epath.PathLike) -> Iterator[None]:
  """Holds the lock of a workdir inside the block; creates the folder.

  The file unilip.lock in it holds the pid, host and command of the holder. It is removed at the end; after
  a kill it stays, and does not lock.

  Raises:
    HeldError: if another command holds the lock, with its pid and host.
  """
  folder = paths.path(folder, "--workdir")
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder} is a file; choose another workdir")
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / FILE
  if "://" in os.fspath(folder):
    if path.exists():
      logging.warning("%s: object stores have no locks. A command that did not end in order (%s) may still "
                      "write there: make sure that it has ended", folder, _holder(path))
    path.write_text(_description())
    try:
      yield
    finally:
      path.unlink(missing_ok=True)
    return
  descriptor = _open_locked(path)
  try:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _description().encode(), 0)
    yield
  finally:
    path.unlink(missing_ok=True)
    os.close(descriptor)


def lock_folder(folder: epath.Path) -> int:
  """Locks a local folder that this command writes; a rename of the folder keeps the lock.

  Returns:
    A file descriptor; closing it releases the lock.

  Raises:
    HeldError: if another command writes it.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    _lock(descriptor, folder)
  except BlockingIOError:
    os.close(descriptor)
    raise HeldError(f"another command is writing {folder}: wait for it, or end it") from None
  return descriptor


def _open_locked(path: epath.Path) -> int:
  """Opens and locks a file that a process that is just ending may remove."""
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      _lock(descriptor, path)
      if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
        return descriptor
    except BlockingIOError:
      os.close(descriptor)
      raise HeldError(f"{path.parent} is in use by another command ({_holder(path)}): wait for it, end it, "
                      "or choose another workdir") from None
    os.close(descriptor)


def _lock(descriptor: int, path: epath.Path) -> None:
  """Locks an open file or folder; raises BlockingIOError if another process has locked it."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError as error:
    logging.warning("the file system of %s has no locks (%s): make sure that no other command writes there",
                    path, error.strerror)


def _description() -> str:
  return json.dumps({
      "pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:500],
      "since": time.strftime("%Y-%m-%d %H:%M:%S")})


def _holder(path: epath.Path) -> str:
  """Returns e.g. 'process 71 on host7 since 2026-01-01 12:00:00: main.py --config=…'."""
  try:
    row = json.loads(path.read_text())
    return f"process {row['pid']} on {row['host']} since {row['since']}: {row['command']}"
  except (OSError, ValueError, KeyError, TypeError):  # it is just being written
    return f"named in {path}"
