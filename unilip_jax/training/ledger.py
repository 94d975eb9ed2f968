"""Books every second of a run under one entry, over all its restarts: where the wall time went.

Steps run asynchronously, so that what the host does says little about the devices. A second counts as
`step` while the devices compute one, whatever the host does meanwhile: a thread waits for the result of
each step and takes the time; the loop never does. Every other second counts as what the host does, e.g.
waiting for data while the devices have nothing to do. The entries therefore sum to the wall time since the
run's first start.

Process 0 writes <workdir>/ledger.json every few seconds. A later start reads it: what lies between is
`restart`, and steps that had been reached before count as `repeated`. metrics.jsonl has the sums so far as
seconds/<entry> and rate/goodput, the share of `step`. After a run's last step nothing is booked until more
steps are asked for.
"""

from collections.abc import Iterator
import contextlib
import json
import queue
import threading
import time
from typing import Any

from absl import logging
from etils import epath
import jax

from unilip_jax.common import atomic_io, json_file
from unilip_jax.multihost import session

FILE = "ledger.json"
# In the order of the report. `other` is what the loop does besides, e.g. writing metrics.
ENTRIES = {
    "step": "training steps", "data": "waiting for data", "rollout": "sampling of rollouts",
    "reward": "waiting for rewards", "evaluation": "evaluation", "samples": "image grids",
    "save": "saving checkpoints", "setup": "set-up", "latents": "target latents",
    "compile": "compilation of the step", "repeated": "steps repeated after a kill",
    "restart": "no process running", "other": "other"}
PREFIX, GOODPUT = "seconds/", "rate/goodput"
_AGAIN = ("step", "data", "rollout", "reward")  # `repeated` for steps that had been reached before
_SECONDS, _REMOTE_SECONDS = 5.0, 60.0  # between writes of the file; object stores charge for each
_JOIN_SECONDS = 10.0

_current: "Ledger | None" = None


@contextlib.contextmanager
def during(entry: str) -> Iterator[None]:
  """Books the seconds inside under an entry of ENTRIES; without an open ledger it does nothing.

  An inner entry takes its seconds from the outer one. Of the thread that opened the ledger alone.
  """
  book = _current
  if book is None:
    yield
    return
  book.enter(entry)
  try:
    yield
  finally:
    book.leave()


def totals() -> dict[str, float]:
  """Returns the sums of the open ledger, see `Ledger.totals`; {} without one."""
  return _current.totals() if _current else {}


def end() -> None:
  """Notes in the open ledger that the run is complete; its pause until more steps does not count."""
  if _current:
    _current.ended = True


class Ledger:
  """Context manager that books the seconds of a workdir; on processes other than 0 it does nothing.

  Attributes:
    ended: whether the run is complete.
  """

  def __init__(self, workdir: epath.PathLike, *, started: float | None = None):
    """Continues the ledger of a workdir, or begins one.

    Args:
      workdir: local or gs:// folder; exists.
      started: Unix seconds when the command began; the default is now. The seconds since are set-up.
    """
    self._path = epath.Path(workdir) / FILE
    self._enabled = session.index() == 0
    self.ended, self._idle = False, False  # idle: the run was complete, and no step has begun
    self._seconds = dict.fromkeys(ENTRIES, 0.0)
    self._period = _REMOTE_SECONDS if "://" in str(workdir) else _SECONDS
    self._entries = ["setup"]
    self._reached_before = self._reached = self._begun = self._sent = 0
    self._lock = threading.Lock()
    self._steps: queue.SimpleQueue = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._follow, name="ledger", daemon=True)
    now = time.time()
    started = now if started is None else min(started, now)
    if self._enabled:
      self._read(started)
    self._mark = time.monotonic() - (now - started)

  def __enter__(self) -> "Ledger":
    global _current
    if self._enabled:
      _current = self
      self._save()
      self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    global _current
    if self._enabled:
      _current = None
      self._steps.put(None)
      self._thread.join(_JOIN_SECONDS)  # it waits longer only for a step that hangs
      self._save()

  def begin(self, step: int) -> None:
    """Books what follows, the wait for its data first, as part of update `step`."""
    with self._lock:
      self._book()
      self._entries[0] = "other"  # set-up is over
      self.ended = self._idle = False
      self._begun = step

  def watch(self, step: int, value: jax.Array) -> None:
    """Books seconds as those of update `step` until its result `value` is there; does not wait."""
    if self._enabled:
      with self._lock:
        self._book()
        self._sent = step
      self._steps.put((step, value))

  def enter(self, entry: str) -> None:
    """Begins an entry, see `during`."""
    with self._lock:
      self._book()
      self._entries.append(entry)

  def leave(self) -> None:
    """Ends the newest entry."""
    with self._lock:
      self._book()
      self._entries.pop()

  def totals(self) -> dict[str, float]:
    """Returns {"seconds/<entry>": seconds so far} of entries above 0, and "rate/goodput"; {} if idle."""
    if self._idle:
      return {}
    with self._lock:
      self._book()
      seconds = dict(self._seconds)
    return {PREFIX + k: round(v, 3) for k, v in seconds.items() if v} | {
        GOODPUT: round(seconds["step"] / max(sum(seconds.values()), 1e-9), 5)}

  def _book(self) -> None:
    """Books the seconds since the last call; the lock is held."""
    now = time.monotonic()
    running = self._sent > self._reached
    entry, step = ("step", self._sent) if running else (self._entries[-1], self._begun)
    if entry in _AGAIN and 0 < step <= self._reached_before:
      entry = "repeated"
    self._seconds[entry] += now - self._mark
    self._mark = now

  def _follow(self) -> None:
    """Takes the time when steps end, and writes the file; runs in the ledger's thread."""
    saved = time.monotonic()
    while True:
      with contextlib.suppress(queue.Empty):
        item = self._steps.get(timeout=self._period)
        if item is None:
          return
        step, value = item
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the loop reads the value too, and raises it
          value.block_until_ready()
        with self._lock:
          self._book()
          self._reached = step
      if time.monotonic() - saved >= self._period:
        self._save()
        saved = time.monotonic()

  def _read(self, started: float) -> None:
    """Takes over what earlier processes booked."""
    if not self._path.exists():
      return
    try:
      state = json_file.read(self._path, remedy="it is begun again",
                             kinds={"time": (int, float), "step": int, "seconds": dict})
    except ValueError as error:
      logging.error("%s; the seconds of earlier starts are lost", error)
      return
    for entry, seconds in state["seconds"].items():
      self._seconds[entry] = float(seconds)
    self.ended = self._idle = state.get("ended", False)
    if not self.ended:
      self._seconds["restart"] += max(0.0, started - state["time"])
    self._reached_before = state["step"]

  def _save(self) -> None:
    with self._lock:
      self._book()
      state = {"time": time.time(), "step": max(self._reached, self._reached_before),
               "ended": self.ended, "seconds": dict(self._seconds)}
    if self._idle:
      return
    try:
      with atomic_io.open_file(self._path) as file:  # unsynchronised: a save would hold it up for seconds
        file.write(json.dumps(state).encode())
    except OSError as error:  # the loop's own files tell of a full disk, too, and end the run
      logging.error("%s was not written: %s", self._path, error)
