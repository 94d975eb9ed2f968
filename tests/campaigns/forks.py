"""Runs functions of the package in forked children of a server that has imported it.

A new interpreter takes seconds for the imports, a fork milliseconds. The server starts no JAX backend and
no thread, so that its children can. It ends with the process that started it, and they with the server.

  with forks.Server() as server:
    child = server.start("tests.campaigns.runs:train", "stage1", log=folder / "log.txt")
    child.kill()          # SIGKILL
    status = child.wait(60)
"""

import atexit
from collections.abc import Mapping, Sequence
import ctypes
import faulthandler
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

from tests import cpu_devices

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PAUSE = 0.005  # seconds between two looks at a child
_PR_SET_PDEATHSIG = 1
IMPORTS = ("unilip_jax.train", "unilip_jax.convert.cli", "unilip_jax.data.prepare.__main__", "tensorboardX",
           "tests.micro")


class Server:
  """A process that forks; a context manager."""

  def __init__(self, imports: Sequence[str] = IMPORTS, env: Mapping[str, str] | None = None):
    """Starts it.

    Args:
      imports: modules that it imports before the first fork.
      env: further environment variables.
    """
    self._process = subprocess.Popen(
        [sys.executable, "-m", "tests.campaigns.forks", *imports], cwd=_ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
        env=cpu_devices.environment() | {"PYTHONUNBUFFERED": "1"} | dict(env or {}))

  def __enter__(self) -> "Server":
    return self

  def __exit__(self, *_) -> None:
    self._process.stdin.close()
    self._process.wait(30)
    self._process.stdout.close()

  def start(
      self, function: str, *arguments: Any, log: pathlib.Path, env: Mapping[str, str] | None = None
  ) -> "Child":
    """Calls "module:function" with JSON-ready arguments in a child; its output is appended to `log`."""
    pid = self._ask({"function": function, "arguments": arguments, "log": str(log), "env": dict(env or {})})
    return Child(self, pid, pathlib.Path(log))

  def _ask(self, request: dict[str, Any]) -> Any:
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError(f"the fork server ended with status {self._process.wait(10)}")
    return json.loads(answer)


class Child:
  """A forked process.

  Attributes:
    pid: of the process.
    log: file of its output.
  """

  def __init__(self, server: Server, pid: int, log: pathlib.Path):
    self._server, self.pid, self.log, self._status = server, pid, log, None

  def poll(self) -> int | None:
    """Returns the exit status, minus the signal for a killed one; None while it runs."""
    if self._status is None:
      self._status = self._server._ask({"poll": self.pid})
    return self._status

  def wait(self, seconds: float) -> int:
    """Waits for the exit status; kills the child and raises TimeoutError if it takes longer."""
    deadline = time.monotonic() + seconds
    while (status := self.poll()) is None:
      if time.monotonic() > deadline:
        os.kill(self.pid, signal.SIGUSR1)  # writes the stack of every thread to the log
        time.sleep(0.5)
        self.kill()
        raise TimeoutError(f"a command has not ended after {seconds:.0f} s:\n{self.output()[-3000:]}")
      time.sleep(_PAUSE)
    return status

  def kill(self) -> None:
    """Ends the child with SIGKILL, unless it has ended, and waits for its end."""
    if self.poll() is None:
      os.kill(self.pid, signal.SIGKILL)
      while self.poll() is None:
        time.sleep(_PAUSE)

  def output(self) -> str:
    """Returns what all children with this log wrote."""
    return self.log.read_text(errors="replace") if self.log.exists() else ""


def _serve() -> None:
  """Answers requests until the standard input ends."""
  _end_with_parent()
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  for name in sys.argv[1:]:
    importlib.import_module(name)
  if (count := threading.active_count()) != 1:
    raise RuntimeError(f"{count} threads run after the imports: a fork would lose them")
  while line := sys.stdin.readline():
    request = json.loads(line)
    if "poll" in request:
      pid, status = os.waitpid(request["poll"], os.WNOHANG)
      answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
      answer = os.fork()
      if not answer:
        answers.close()
        _run(request)
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _run(request: dict[str, Any]) -> None:
  """Runs a request in the child and ends it, as a command line ends."""
  from unilip_jax.common import errors

  _end_with_parent()
  os.environ |= request["env"]
  log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  nothing = os.open(os.devnull, os.O_RDONLY)
  os.dup2(nothing, 0)
  os.dup2(log, 1)
  os.dup2(log, 2)
  faulthandler.register(signal.SIGUSR1)
  status = 1
  try:
    module, _, name = request["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    errors.run_command(lambda: function(*request["arguments"]))
    status = 0
  except SystemExit as end:
    status = end.code if isinstance(end.code, int) else 1
  except BaseException:
    traceback.print_exc()
  try:
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
  finally:
    os._exit(status)


def _end_with_parent() -> None:
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
  _serve()
