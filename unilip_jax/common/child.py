"""Child processes: ends them with their parent, and sets their environment."""

from collections.abc import Iterator, Mapping
import contextlib
import multiprocessing
import os
import threading


def end_with_parent(*_: object) -> None:
  """Ends this process, a child of multiprocessing, when its parent has ended; its work is lost.

  Called in the child. It waits for the end of a pipe that the parent alone holds open: the kernel closes it
  even if the parent is killed, on every operating system. (Linux' PR_SET_PDEATHSIG would end the child with
  the thread that started it.)
  """
  parent = multiprocessing.parent_process()

  def wait() -> None:
    parent.join()
    os._exit(1)

  if parent is not None:
    threading.Thread(target=wait, name="end with parent", daemon=True).start()


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
  """Sets environment variables for a child process that is started inside."""
  before = dict(os.environ)
  os.environ.update(values)
  try:
    yield
  finally:
    os.environ.clear()
    os.environ.update(before)
