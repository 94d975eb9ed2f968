"""Heartbeats between all processes of a run: a process that is silent, failed or late ends it, by name.

Every process posts a heartbeat to the key-value store of JAX's coordination service and reads the others'.
When one is lost, all end with a message that names it; on accelerators a collective whose partner is gone
would hang for ever. A process that is killed, or aborted from C++, leaves a message too (DeathNotice).

JAX's own heartbeats are the second line of defence only: they abort all processes from within C++, with the
lost process's number but neither its host nor what it was doing, nor an exit status to start again on. They
do not notice a process that is alive but late.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from absl import logging
import jax

from unilip_jax.common import errors
from unilip_jax.multihost import options as options_lib

_ROOT = "unilip/watch/"

Listener = Callable[[Mapping[str, str], Callable[[str, str], None], Sequence[int]], bool]


class HostsError(ValueError):
  """Hosts do not fit together; the message names them."""


class LateError(HostsError, errors.TryAgainError):
  """Other processes did not come in time: start the run again."""


class Watchdog:
  """Posts this process's heartbeats and checks the others', in a thread.

  Attributes:
    options: of this process.
    listeners: called at every heartbeat, see session.listen.
    waits: [what, since when] of the waits that this process is in, innermost last.
    doing: what this process does outside of waits.
  """

  def __init__(
      self, client: Any, place: options_lib.Place, names: Sequence[str],
      options: options_lib.Options, death_notice: "DeathNotice"):
    self.options, self.listeners = options, []
    self.waits: list[list] = []
    self.doing = "starting"
    self._client, self._place, self._names = client, place, names
    self._death_notice = death_notice
    # With a thousand hosts one heartbeat a second would overload process 0.
    self._pause = max(min(1.0, options.silence_timeout / 5), place.count / 64)
    now = time.monotonic()
    # Per process: (its last heartbeat, when that was new here).
    self._heartbeats = {i: ("", now) for i in range(place.count)}
    self._answer_time, self._number, self._ending = now, 0, threading.Lock()
    self._left: list[int] = []
    self._stopped = threading.Event()
    self._local_error = ""  # an error in this process that the loss of another may have caused
    self._thread = threading.Thread(target=self._run, name="hosts watchdog", daemon=True)

  def start(self) -> None:
    self._beat()
    self._thread.start()

  def stop(self) -> None:
    """Leaves in order: the others do not wait for this process any more."""
    self._post(f"left/{self._place.index}", "in order")
    self._stopped.set()
    self._thread.join(timeout=2 * self._pause + 5)

  def describe(self, process: int) -> str:
    """Returns e.g. 'process 2 (host7, last heartbeat 31 s ago, at: step 12)'."""
    heartbeat, when = self._heartbeats[process]
    where = json.loads(heartbeat)["doing"] if heartbeat else "never seen"
    return (f"process {process} ({self._names[process]}, last heartbeat "
            f"{time.monotonic() - when:.0f} s ago, at: {where})")

  def fail(self, error: BaseException, message: str) -> NoReturn:
    """Ends this process because of its own error or, if another process is gone, because of that."""
    if isinstance(error, RuntimeError):  # a collective breaks where its partner is gone
      self._local_error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
      logging.warning("%s; finding out whether another process is the cause", self._local_error)
      time.sleep(self.options.silence_timeout + 3 * self._pause + 1)
    first = (str(error).splitlines() or [""])[0]
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the message below counts
      self._post(f"failed/{self._place.index}", f"{type(error).__name__}: {first}"[:500])
    self._end(message, status=errors.AGAIN if isinstance(error, errors.TryAgainError) else 1)

  # ---- the thread

  def _run(self) -> None:
    try:
      pause = self._pause
      while not self._stopped.wait(pause):
        pause = 0.1 if self._beat() else self._pause
    except Exception:  # without the watchdog only JAX's own heartbeat would notice a lost host
      self._end(f"the watchdog over the other hosts failed\n{traceback.format_exc()}", status=1)

  def _beat(self) -> bool:
    """Posts one heartbeat and checks the others'; returns whether a listener needs the next one soon."""
    now = time.monotonic()
    self._number += 1
    waits = list(self.waits)  # the main thread changes it
    heartbeat = json.dumps({"number": self._number, "doing": waits[-1][0] if waits else self.doing})
    try:
      self._post(f"alive/{self._place.index}", heartbeat)
      rows = self._rows()
    except jax.errors.JaxRuntimeError as error:
      if self._stopped.is_set():
        return False
      silent = now - self._answer_time
      if silent > self.options.silence_timeout:
        self._end(f"process 0 ({self._names[0]}), which coordinates, has not answered for {silent:.0f} s "
                  f"({str(error).splitlines()[0]})", absent=[0])
      return False
    self._answer_time = time.monotonic()
    self._left = [int(k.split("/")[1]) for k in rows if k.startswith("left/")]
    self._check_failures(rows)
    self._check_silence(rows)
    self._check_late(time.monotonic())
    soon = [listener(rows, self._post, self._left) for listener in self.listeners]
    return any(soon)

  def _check_failures(self, rows: Mapping[str, str]) -> None:
    for key, text in rows.items():
      if key.startswith("failed/") and (other := int(key.split("/")[1])) != self._place.index:
        self._end(f"process {other} ({self._names[other]}) stopped: {text}. See its log",
                  absent=[other])

  def _check_silence(self, rows: Mapping[str, str]) -> None:
    now, silent = time.monotonic(), []
    for other in range(self._place.count):
      heartbeat = rows.get(f"alive/{other}", "")
      if heartbeat != self._heartbeats[other][0]:
        self._heartbeats[other] = (heartbeat, now)
      elif (other not in self._left
            and now - self._heartbeats[other][1] > self.options.silence_timeout):
        silent.append(other)
    if silent and self._place.index not in silent:
      self._end("gone or cut off: " + ", ".join(map(self.describe, silent)), absent=silent)

  def _check_late(self, now: float) -> None:
    waits = list(self.waits)
    what, since = waits[-1] if waits else ("", now)
    if now - since <= self.options.wait_timeout:
      return
    late = [i for i, (heartbeat, _) in self._heartbeats.items()
            if i not in self._left and heartbeat and json.loads(heartbeat)["doing"] != what]
    who = ("not there: " + ", ".join(map(self.describe, late)) if late else
           "all processes are there, so that the devices or the network between them must hang")
    message = f"process {self._place.index} has waited {now - since:.0f} s for {what}; {who}"
    self._post(f"failed/{self._place.index}", message)
    self._end(message)

  def _post(self, key: str, text: str) -> None:
    self._client.key_value_set(_ROOT + key, text, allow_overwrite=True)

  def _rows(self) -> dict[str, str]:
    return {k.removeprefix(_ROOT): v for k, v in self._client.key_value_dir_get(_ROOT)}

  # ---- the end

  def _end(self, message: str, *, absent: Sequence[int] = (), status: int = errors.AGAIN) -> NoReturn:
    """Prints the message and exits at once; process 0 first waits for the others to leave.

    Not sys.exit: JAX would wait for processes that are gone.
    """
    if not self._ending.acquire(blocking=False):  # the other thread ends this process
      time.sleep(3600)
    if status == errors.AGAIN:
      cause = f"\n(here: {self._local_error})" if self._local_error else ""
      message = message.removeprefix("error: ")
      message = (f"error: {message}{cause}\nThe run has ended on every host; rerun the same command on "
                 "all of them, and it continues from the last checkpoint")
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    self._death_notice.cancel()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
      self._post(f"left/{self._place.index}", "ended")
      deadline = time.monotonic() + 4 * self._pause + 5
      while self._place.index == 0 and time.monotonic() < deadline:
        left = {int(k.split("/")[1]) for k in self._rows() if k.startswith("left/")}
        if left | set(absent) >= set(range(self._place.count)):
          break
        time.sleep(0.1)
    for child in multiprocessing.active_children():  # decoding processes would outlive this one
      child.kill()
    os._exit(status)


class DeathNotice:
  """A child process that prints an error when this process is killed, or aborted from C++.

  JAX aborts every process at once, without running any Python, when process 0 is lost.
  """

  _SCRIPT = 'trap "" HUP INT TERM; read -r cancelled || printf "%s\\n" "$1" >&2'

  def __init__(self, place: options_lib.Place, names: Sequence[str]):
    message = (
        f"error: process {place.index} of {place.count} ({names[place.index]}) was killed or aborted; "
        "lines above this one may give the reason. Lines about the JAX distributed service mean that "
        f"process 0 ({names[0]}), which coordinates, is gone: see its log. Rerun the same command on all "
        "hosts, and it continues from the last checkpoint")
    self._shell = subprocess.Popen(
        ["/bin/sh", "-c", self._SCRIPT, "sh", message], stdin=subprocess.PIPE, start_new_session=True)

  def cancel(self) -> None:
    """Ends the child process without a message."""
    with contextlib.suppress(BrokenPipeError, ValueError):  # cancelled before
      self._shell.stdin.write(b"cancelled\n")
      self._shell.stdin.close()
      self._shell.wait(timeout=5)
