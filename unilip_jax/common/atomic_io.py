"""Files and folders that appear only when they are whole: written beside their place, then renamed."""

from collections.abc import Callable, Iterator
import contextlib
from typing import BinaryIO
import uuid

from etils import epath


@contextlib.contextmanager
def file(place: epath.PathLike) -> Iterator[BinaryIO]:
  """A file in the making, open for writing; after a failure nothing is left of it, and a former one stays.

  Several processes and hosts may write one file at once: each writes its own, and the last one's stays.

  Args:
    place: local or gs:// path in a folder that is there; a file that stands there is replaced.
  """
  final = epath.Path(place).expanduser()
  beside = final.with_name(f"{final.name}.tmp-{uuid.uuid4().hex}")
  try:
    with beside.open("wb") as stream:
      yield stream
    beside.replace(final)
  except BaseException:
    beside.unlink(missing_ok=True)
    raise


def write(place: epath.PathLike, content: bytes) -> None:
  """Writes a small file, see `file`."""
  with file(place) as stream:
    stream.write(content)


class Folder:
  """A folder in the making; after a failure nothing is left of it, and a former one stays.

  with Folder(place, overwrite=False, replaceable=is_mine) as folder:
    (folder.path / "a.json").write_text(…)
    folder.finish()

  Attributes:
    path: where to write.
  """

  def __init__(
      self, place: epath.PathLike, *, overwrite: bool,
      replaceable: Callable[[epath.Path], bool]):
    """Looks at the place; nothing is written yet.

    Args:
      place: local or gs:// path. Object stores have no rename: there it is written in place, and what
        comes last has to say that it is whole.
      overwrite: replace what is already there.
      replaceable: whether a folder is of the kind that may be replaced.

    Raises:
      ValueError: if the folder is not empty and may not be replaced.
    """
    self._final = epath.Path(place).expanduser()
    if self._final.exists():
      if not self._final.is_dir():
        raise ValueError(f"{self._final} is a file; choose another folder")
      if any(self._final.iterdir()):
        if not overwrite:
          raise ValueError(f"{self._final} is not empty; choose another folder or pass --overwrite")
        if not replaceable(self._final):
          raise ValueError(f"{self._final} is not a folder of weights of the same kind: not replaced")
    self._remote = "://" in str(self._final)
    self.path = self._final if self._remote else self._beside(".tmp")
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
    """Puts the folder in its place."""
    if not self._remote:
      former = self._beside(".old")
      if self._final.exists():
        self._final.rename(former)
      self.path.rename(self._final)
      if former.exists():
        former.rmtree()
    self._finished = True

  def _beside(self, suffix: str) -> epath.Path:
    return self._final.with_name(self._final.name + suffix)
