"""A watch over all processes of a run: who falls silent, fails or comes late ends it, by name.

Every process posts a sign of life to the key-value store that all share, and reads the others'. Where
one is lost, all end with a message that names it: a collective whose partner is gone would otherwise
hang for ever on accelerators. A process that is killed, or aborted from C++, still has last words.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
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

_ROOT = "unilip/watch/"

Listener = Callable[[Mapping[str, str], Callable[[str, str], None], Sequence[int]], bool]


class HostsError(ValueError):
  """Hosts do not fit together; the message names them."""


class LateError(HostsError):
  """Others did not come in time: to be started again."""


@dataclasses.dataclass(frozen=True)
class Options:
  """How this process finds the others.

  Attributes:
    multihost: True: let JAX recognise the cluster (TPU pod, SLURM, Open MPI, Kubernetes); False: one
      process; None: as True on a TPU pod of several hosts.
    coordinator: HOST:PORT of process 0; then process_count and process_index are given too.
    process_count: of processes.
    process_index: of this process.
    start_timeout: seconds until all processes must have come.
    silence_timeout: seconds without a sign of life after which a process counts as dead.
    wait_timeout: seconds that a step, a batch of evaluation, a save or a barrier may take.
  """

  multihost: bool | None = None
  coordinator: str = ""
  process_count: int | None = None
  process_index: int | None = None
  start_timeout: float = 300.0
  silence_timeout: float = 100.0
  wait_timeout: float = 1800.0


@dataclasses.dataclass(frozen=True)
class Place:
  """This process among the others."""

  coordinator: str
  count: int
  index: int
  devices: Sequence[int] | None
  found_by: str


class Watch:
  """Signs of life: this process's are posted, the others' are read."""

  def __init__(self, client: Any, place: Place, names: Sequence[str], options: Options, death_notice):
    self.options, self.listeners = options, []
    self.waits: list[list] = []  # [what, since when], innermost last
    self.doing = "starting"
    self._client, self._place, self._names, self._last_words = client, place, names, death_notice
    # A thousand hosts would ask too much of process 0 once a second.
    self._pause = max(min(1.0, options.silence_timeout / 5), place.count / 64)
    now = time.monotonic()
    self._heard = {i: ("", now) for i in range(place.count)}  # (last sign, when it was new here)
    self._answered, self._number, self._ending = now, 0, threading.Lock()
    self._left: list[int] = []
    self._stopped = threading.Event()
    self._here_failed = ""  # an error in this process that may be the other's fault
    self._thread = threading.Thread(target=self._run, name="hosts watch", daemon=True)

  def start(self) -> None:
    self._tick()
    self._thread.start()

  def stop(self) -> None:
    """Leaves in order: the others will not miss this process."""
    self._post(f"left/{self._place.index}", "in order")
    self._stopped.set()
    self._thread.join(timeout=2 * self._pause + 5)

  def describe(self, process: int) -> str:
    """'process 2 (host7, last seen 31 s ago, at step 12)'."""
    sign, when = self._heard[process]
    where = json.loads(sign)["doing"] if sign else "never seen"
    return (f"process {process} ({self._names[process]}, last sign of life "
            f"{time.monotonic() - when:.0f} s ago, at: {where})")

  def fail(self, error: BaseException, message: str) -> NoReturn:
    """Ends this process for an error of its own or, if one of the others is gone, for that."""
    if isinstance(error, RuntimeError):  # a collective breaks where its partner is gone
      self._here_failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
      logging.warning("%s; finding out whether another process is the cause", self._here_failed)
      time.sleep(self.options.silence_timeout + 3 * self._pause + 1)
    first = (str(error).splitlines() or [""])[0]
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the message below counts
      self._post(f"failed/{self._place.index}", f"{type(error).__name__}: {first}"[:500])
    self._end(message, status=errors.AGAIN if isinstance(error, LateError) else 1)

  # ---- the thread

  def _run(self) -> None:
    try:
      pause = self._pause
      while not self._stopped.wait(pause):
        pause = 0.1 if self._tick() else self._pause
    except Exception:  # without a watch a lost host would be found by JAX's own heartbeat alone
      self._end(f"the watch over the other hosts failed\n{traceback.format_exc()}", status=1)

  def _tick(self) -> bool:
    now = time.monotonic()
    self._number += 1
    waits = list(self.waits)  # the other thread goes on
    sign = json.dumps({"number": self._number, "doing": waits[-1][0] if waits else self.doing})
    try:
      self._post(f"alive/{self._place.index}", sign)
      rows = self._rows()
    except jax.errors.JaxRuntimeError as error:
      if self._stopped.is_set():
        return False
      silent = now - self._answered
      if silent > self.options.silence_timeout:
        self._end(f"process 0 ({self._names[0]}), which coordinates, has not answered for {silent:.0f} s "
                  f"({str(error).splitlines()[0]})", absent=[0])
      return False
    self._answered = time.monotonic()
    self._left = [int(k.split("/")[1]) for k in rows if k.startswith("left/")]
    self._look_for_failures(rows)
    self._look_for_silence(rows)
    self._look_for_late(time.monotonic())
    soon = [listener(rows, self._post, self._left) for listener in self.listeners]
    return any(soon)

  def _look_for_failures(self, rows: Mapping[str, str]) -> None:
    for key, text in rows.items():
      if key.startswith("failed/") and (other := int(key.split("/")[1])) != self._place.index:
        self._end(f"process {other} ({self._names[other]}) stopped: {text}. Its log says more",
                  absent=[other])

  def _look_for_silence(self, rows: Mapping[str, str]) -> None:
    now, silent = time.monotonic(), []
    for other in range(self._place.count):
      sign = rows.get(f"alive/{other}", "")
      if sign != self._heard[other][0]:
        self._heard[other] = (sign, now)
      elif other not in self._left and now - self._heard[other][1] > self.options.silence_timeout:
        silent.append(other)
    if silent and self._place.index not in silent:
      self._end("gone or cut off: " + ", ".join(map(self.describe, silent)), absent=silent)

  def _look_for_late(self, now: float) -> None:
    waits = list(self.waits)
    what, since = waits[-1] if waits else ("", now)
    if now - since <= self.options.wait_timeout:
      return
    late = [i for i, (sign, _) in self._heard.items()
            if i not in self._left and sign and json.loads(sign)["doing"] != what]
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
    """Prints the message, sees the others off where this process coordinates, and exits at once.

    Not sys.exit: JAX would wait for processes that are gone.
    """
    if not self._ending.acquire(blocking=False):  # the other thread is at it
      time.sleep(3600)
    if status == errors.AGAIN:
      here = f"\n(here: {self._here_failed})" if self._here_failed else ""
      message = message.removeprefix("error: ")
      message = (f"error: {message}{here}\nThe run has ended on every host; rerun the same command on all "
                 "of them, and it continues from the last checkpoint")
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    self._last_words.cancel()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # who coordinates may be gone
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
  """A shell that speaks when this process has ended without a word, killed or aborted from C++.

  JAX aborts every process at once when process 0 is lost, past all of Python.
  """

  _SCRIPT = 'trap "" HUP INT TERM; read -r spared || printf "%s\\n" "$1" >&2'

  def __init__(self, place: Place, names: Sequence[str]):
    message = (
        f"error: process {place.index} of {place.count} ({names[place.index]}) was killed or aborted; "
        "lines above this one may say why. Lines about the JAX distributed service mean that process 0 "
        f"({names[0]}), which coordinates, is gone: see its log. Rerun the same command on all hosts, and "
        "it continues from the last checkpoint")
    self._shell = subprocess.Popen(
        ["/bin/sh", "-c", self._SCRIPT, "sh", message], stdin=subprocess.PIPE, start_new_session=True)

  def cancel(self) -> None:
    """Nothing is left to say."""
    with contextlib.suppress(BrokenPipeError, ValueError):  # spared before
      self._shell.stdin.write(b"spared\n")
      self._shell.stdin.close()
      self._shell.wait(timeout=5)
