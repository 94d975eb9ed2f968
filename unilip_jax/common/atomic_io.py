"""Files and folders that appear only when they are complete: written to a temporary name, then renamed."""

from collections.abc import Callable, Iterator
import contextlib
from typing import BinaryIO
import uuid

from etils import epath

from unilip_jax.common import paths


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
  """Writes a small file atomically, see `open_file`."""
  with open_file(path) as stream:
    stream.write(content)


class Folder:
  """Writes a folder that appears when it is complete; an existing one is replaced then.

  If the block ends without `finish`, the temporary folder is removed and an existing folder stays.

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
    """
    self._final = paths.path(path)
    if self._final.exists():
      if not self._final.is_dir():
        raise ValueError(f"{self._final} is a file; choose another folder")
      if any(self._final.iterdir()):
        if not overwrite:
          raise ValueError(f"{self._final} is not empty; choose another folder or pass --overwrite")
        if not replaceable(self._final):
          raise ValueError(f"{self._final} is not a folder of weights of the same kind: not replaced")
    self._remote = "://" in str(self._final)
    self.path = self._final if self._remote else self._with_suffix(".tmp")
    self._finished = False

  def __enter__(self) -> "Folder":
    if self.path.exists():
      self.path.rmtree()
    self.path.mkdir(parents=True)
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if not self._finished:
      self.path.rmtree()

  def finish(self) -> None:
    """Renames the folder to its final name."""
    if not self._remote:
      previous = self._with_suffix(".old")
      if self._final.exists():
        self._final.rename(previous)
      self.path.rename(self._final)
      if previous.exists():
        previous.rmtree()
    self._finished = True

  def _with_suffix(self, suffix: str) -> epath.Path:
    return self._final.with_name(self._final.name + suffix)
