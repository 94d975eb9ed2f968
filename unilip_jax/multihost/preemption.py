"""SIGTERM and Ctrl-C as a request to stop at the next safe point; on many hosts, at one that all share."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import itertools
import signal
import threading

from absl import logging

from unilip_jax.multihost import session


class Stopped(Exception):
  """A stop was requested while only reading was going on."""


_current: "StopRequest | None" = None
_stopped = False


def stopped() -> bool:
  """Whether this process was asked to stop, and did."""
  return _stopped


def preemption_point() -> None:
  """Between batches of evaluation: raises Stopped where the hosts have agreed to stop here."""
  session.beat()
  if _current is not None:
    _current.pass_safe_point()


class StopRequest:
  """Context manager: signals ask for a stop instead of killing the process.

  Inside `interruptible()` (evaluation, which changes nothing) a stop raises `Stopped`, so that a long
  evaluation does not outlast the notice: on one process at once, on many hosts at a safe point. A
  second Ctrl-C kills as usual.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self._asked = False
    self._interruptible = False
    self._agreement = Agreement() if session.watched() else None

  def __enter__(self):
    global _current
    self._previous = {s: signal.signal(s, self._handle) for s in self._SIGNALS}
    _current = self
    return self

  def __exit__(self, *exc):
    global _current
    _current = None
    for s, handler in self._previous.items():
      signal.signal(s, handler)

  def reached(self) -> bool:
    """Whether to stop here; every process asks at the same points, and all get the same answer."""
    return self._note(self._agreement.reached() if self._agreement else self._asked)

  def pass_safe_point(self) -> None:
    """See the function `safe_point`."""
    if self._interruptible and self._agreement and self._note(self._agreement.reached()):
      raise Stopped

  def _note(self, stop: bool) -> bool:
    global _stopped
    _stopped |= stop
    return stop

  def _handle(self, number, frame):
    del frame
    if self._asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._asked = True
    if self._agreement:
      self._agreement.ask(f"process {session.index()} got {signal.Signals(number).name}")
    elif self._interruptible:
      self._interruptible = False
      self._note(True)
      raise Stopped

  @contextlib.contextmanager
  def interruptible(self):
    """Raises Stopped inside the block on a signal, or on entry if one has come already."""
    if self._note(self._asked and not self._agreement):
      raise Stopped
    self._interruptible = True
    try:
      yield
    finally:
      self._interruptible = False


class Agreement:
  """All processes stop at one safe point, whichever of them is asked to.

  Each process counts the safe points that it has passed; they come in the same order everywhere. Once
  anyone has asked, each halts at its next safe point and posts that one's number. The largest is where
  all stop: nobody has passed it, and who is behind still goes there. Nothing is exchanged before, so
  that steps wait for no one.
  """

  _numbers = itertools.count()  # of the requests in this process; the same on all

  def __init__(self):
    self._folder = f"stop{next(self._numbers)}"
    self._wish, self._wish_posted = "", False
    self._passed = 0
    self._stop_at: int | None = None
    self._halt = threading.Lock()  # held by the watch's thread from the first wish to the agreement
    self._halted = False
    self._members = range(session.count())
    session.listen(self._on_sign)

  def ask(self, why: str) -> None:
    """Wishes for a stop; safe in a signal handler."""
    self._wish = why

  def reached(self) -> bool:
    """Counts a safe point: whether it is the one to stop at."""
    with self._halt:
      if self._stop_at is not None and self._passed >= self._stop_at:
        return True
      self._passed += 1
      return self._stop_at is not None and self._passed >= self._stop_at

  def _on_sign(
      self, rows: Mapping[str, str], post: Callable[[str, str], None], left: Sequence[int]) -> bool:
    wish, own = f"{self._folder}/wish", f"{self._folder}/at/{session.index()}"
    if self._wish and not self._wish_posted:
      post(wish, self._wish)
      self._wish_posted = True
      return True
    if self._stop_at is not None or wish not in rows:
      return False
    if not self._halted:
      logging.info("%s: all hosts stop at the next point that they share", rows[wish])
      self._halt.acquire()
      self._halted = True
      post(own, str(self._passed + 1))
      return True
    at = {int(key.rsplit("/", 1)[1]): int(text) for key, text in rows.items()
          if key.startswith(f"{self._folder}/at/")}
    if any(i not in at and i not in left for i in self._members):
      return True
    self._stop_at = max(at.values())
    self._halt.release()
    return False
