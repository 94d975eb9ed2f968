"""SIGTERM and Ctrl-C as a request to stop at the next safe point."""

import contextlib
import signal


class Stopped(Exception):
  """A stop was requested while only reading was going on."""


class StopRequest:
  """Context manager: signals set `requested` instead of killing the process.

  Inside `interruptible()` (evaluation, which changes nothing) a signal raises `Stopped` at once, so
  that a long evaluation does not outlast the notice. A second Ctrl-C kills as usual.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.requested = False
    self._interruptible = False

  def __enter__(self):
    self._previous = {s: signal.signal(s, self._handle) for s in self._SIGNALS}
    return self

  def __exit__(self, *exc):
    for s, handler in self._previous.items():
      signal.signal(s, handler)

  def _handle(self, number, frame):
    del frame
    if self.requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.requested = True
    if self._interruptible:
      self._interruptible = False
      raise Stopped

  @contextlib.contextmanager
  def interruptible(self):
    """Raises Stopped inside the block on a signal, or on entry if one has come already."""
    if self.requested:
      raise Stopped
    self._interruptible = True
    try:
      yield
    finally:
      self._interruptible = False
