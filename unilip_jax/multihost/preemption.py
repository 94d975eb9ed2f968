"""SIGTERM and Ctrl-C as a request to stop; several processes agree on the point at which all stop.

JAX has such a service (multihost_utils.reached_preemption_sync_point). It is not used, because

- it counts training steps, and a stop must be possible inside an evaluation;
- orbax's CheckpointManager passes its own step numbers to the same counter, from a background thread too,
  and a counter that goes back can miss the agreed step;
- it handles SIGTERM alone.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import itertools
import signal
import threading

from absl import logging

from unilip_jax.multihost import session


class Stopped(Exception):
  """Ends an evaluation early, because a stop was requested."""


_current: "StopRequest | None" = None
_stopped = False


def stopped() -> bool:
  """Returns whether this process was asked to stop, and did."""
  return _stopped


def preemption_point() -> None:
  """Raises Stopped between two batches of evaluation if the processes have agreed to stop here."""
  session.beat()
  if _current is not None:
    _current.check_evaluation()


class StopRequest:
  """Context manager in which a signal requests a stop and does not kill the process.

  Inside `interruptible()` (evaluation, which changes nothing) a stop raises `Stopped`, so that a long
  evaluation does not outlast the warning time of a preemption: at once on one process, at a preemption
  point on several. A second Ctrl-C kills the process.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self._requested = False
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
    """Returns whether to stop here; all processes call it at the same points and get the same answer."""
    return self._record(self._agreement.reached() if self._agreement else self._requested)

  def check_evaluation(self) -> None:
    """Raises Stopped inside `interruptible()` if the processes have agreed to stop here."""
    if self._interruptible and self._agreement and self._record(self._agreement.reached()):
      raise Stopped

  def _record(self, stop: bool) -> bool:
    global _stopped
    _stopped |= stop
    return stop

  def _handle(self, number, frame):
    del frame
    if self._requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._requested = True
    if self._agreement:
      self._agreement.request(f"process {session.index()} got {signal.Signals(number).name}")
    elif self._interruptible:
      self._interruptible = False
      self._record(True)
      raise Stopped

  @contextlib.contextmanager
  def interruptible(self):
    """Raises Stopped inside the block on a signal, or on entry if a signal came before."""
    if self._record(self._requested and not self._agreement):
      raise Stopped
    self._interruptible = True
    try:
      yield
    finally:
      self._interruptible = False


class Agreement:
  """Stops all processes at one preemption point, whichever of them is asked to stop.

  Each process counts the preemption points that it has passed; they come in the same order everywhere.
  After a request each process halts at its next point and posts the number of that point. All stop at
  the largest number: no process has passed it, and those behind continue to it. Nothing is exchanged
  before a request, so that steps wait for no other process.
  """

  _numbers = itertools.count()  # of the agreements in this process; the same on all

  def __init__(self):
    self._folder = f"stop{next(self._numbers)}"
    self._reason, self._reason_posted = "", False
    self._passed = 0
    self._stop_at: int | None = None
    self._halt = threading.Lock()  # held by the watchdog's thread from the first request to the agreement
    self._halted = False
    self._members = range(session.count())
    session.listen(self._on_heartbeat)

  def request(self, reason: str) -> None:
    """Requests a stop; safe in a signal handler."""
    self._reason = reason

  def reached(self) -> bool:
    """Counts a preemption point and returns whether it is the one to stop at."""
    with self._halt:
      if self._stop_at is not None and self._passed >= self._stop_at:
        return True
      self._passed += 1
      return self._stop_at is not None and self._passed >= self._stop_at

  def _on_heartbeat(
      self, rows: Mapping[str, str], post: Callable[[str, str], None], left: Sequence[int]) -> bool:
    """Takes part in the agreement (see session.listen); returns whether it is still going on."""
    reason, own_point = f"{self._folder}/reason", f"{self._folder}/at/{session.index()}"
    if self._reason and not self._reason_posted:
      post(reason, self._reason)
      self._reason_posted = True
      return True
    if self._stop_at is not None or reason not in rows:
      return False
    if not self._halted:
      logging.info("%s: all hosts stop at the same step", rows[reason])
      self._halt.acquire()
      self._halted = True
      post(own_point, str(self._passed + 1))
      return True
    points = {int(key.rsplit("/", 1)[1]): int(text) for key, text in rows.items()
              if key.startswith(f"{self._folder}/at/")}
    if any(i not in points and i not in left for i in self._members):
      return True
    self._stop_at = max(points.values())
    self._halt.release()
    return False
