"""Files and folders that appear only when they are complete: written to a temporary name, then renamed."""

from collections.abc import Callable, Iterator
import contextlib
import os
import re
from typing import BinaryIO
import uuid

from absl import logging
from etils import epath

from unilip_jax.common import locks, paths

_TEMPORARY = re.compile(r".+\.tmp-[0-9a-f]{32}")


@contextlib.contextmanager
def open_file(path: epath.PathLike) -> Iterator[BinaryIO]:
  """Opens a file for writing that appears when the block ends; an existing file is replaced.

  If the block raises, the temporary file is removed and an existing file stays. Several processes and
  hosts may write the same file at once: each has its own temporary file, and the last to finish wins.

  Args:
    path: local or gs:// path in an existing folder.
  """
  final = paths.path(path)
  temporary = final.with_name(f"{final.name}.tmp-{uuid.uuid4().hex}")
  try:
    with temporary.open("wb") as stream:
      yield stream
    temporary.replace(final)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write(path: epath.PathLike, content: bytes) -> None:
  """Writes a small file atomically, see `open_file`; a local one survives a power failure."""
  with open_file(path) as stream:
    stream.write(content)
    if "://" not in os.fspath(path):
      stream.flush()
      os.fsync(stream.fileno())


def remove_leftovers(folder: epath.PathLike) -> None:
  """Removes the temporary files that killed processes left in a folder that no other process writes to."""
  folder = epath.Path(folder)
  for path in folder.iterdir() if folder.exists() else ():
    if _TEMPORARY.fullmatch(path.name):
      logging.warning("removed %s, which a killed process left unfinished", path)
      path.unlink()


class Folder:
  """Writes a folder that appears when it is complete; an existing one is replaced then.

  If the block ends without `finish`, the temporary folder is removed and an existing folder stays. What a
  killed process left is removed, or put back if it is the folder that was being replaced.

  with Folder(path, overwrite=False, replaceable=is_export) as folder:
    (folder.path / "a.json").write_text(…)
    folder.finish()

  Attributes:
    path: the temporary folder to write to.
  """

  def __init__(
      self, path: epath.PathLike, *, overwrite: bool,
      replaceable: Callable[[epath.Path], bool]):
    """Checks the path; writes nothing yet.

    Args:
      path: local or gs:// path. Object stores have no rename: there files are written to the final
        folder, and the caller writes last the file that marks the folder as complete.
      overwrite: replace an existing folder.
      replaceable: whether an existing folder is of the kind that may be replaced.

    Raises:
      ValueError: if the folder is not empty and may not be replaced.
      locks.HeldError: if another command is writing it.
    """
    self._final = paths.path(path)
    self._remote = paths.is_remote(self._final)
    self.path = self._final if self._remote else self._with_suffix(".tmp")
    self._replaced = self._with_suffix(".replaced")  # the former folder, between two renames
    self._finished, self._lock = False, None
    if not self._remote and (self.path.is_dir() or self._replaced.is_dir()):
      self._remove_leftovers()
    if self._final.exists():
      if not self._final.is_dir():
        raise ValueError(f"{self._final} is a file; choose another folder")
      if any(self._final.iterdir()):
        if not overwrite:
          raise ValueError(f"{self._final} is not empty; choose another folder or pass --overwrite")
        if not replaceable(self._final):
          raise ValueError(f"{self._final} is not a folder of weights of the same kind: not replaced")

  def __enter__(self) -> "Folder":
    if self._remote:
      if self.path.exists():
        self.path.rmtree()
      self.path.mkdir(parents=True)
    else:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = locks.lock_folder(self.path)
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if not self._finished and self.path.exists():
      self.path.rmtree()
    if self._lock is not None:
      os.close(self._lock)

  def finish(self) -> None:
    """Renames the folder to its final name."""
    if not self._remote:
      if self._final.exists():
        self._final.rename(self._replaced)
      self.path.rename(self._final)
      if self._replaced.exists():
        self._replaced.rmtree()
    self._finished = True

  def _remove_leftovers(self) -> None:
    """Removes what a killed process left, unless the process is alive."""
    self.path.mkdir(exist_ok=True)
    lock = locks.lock_folder(self.path)
    try:
      if self._replaced.exists() and self._final.exists():
        self._replaced.rmtree()
      elif self._replaced.exists():
        logging.warning("%s is put back: a killed process was replacing it", self._final)
        self._replaced.rename(self._final)
      if any(self.path.iterdir()):
        logging.warning("removed %s, which a killed process left unfinished", self.path)
      self.path.rmtree()
    finally:
      os.close(lock)

  def _with_suffix(self, suffix: str) -> epath.Path:
    return self._final.with_name(self._final.name + suffix)
