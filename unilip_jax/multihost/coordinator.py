"""Runs JAX's coordination service in a child process of process 0, so that it outlives process 0.

If the service ended with process 0, JAX would abort all other processes at once from within C++ (status
134), before they could name the cause. With the service alive, their watchdogs notice that process 0 is
silent, name it, and end with the status that starts the run again.

The child ends when process 0 does. If process 0 was killed, the child first waits until the others have
disconnected. This file is run as a script, so it imports the service alone.
"""

from collections.abc import Callable
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

_START_SECONDS = 60.0
_END_SECONDS = 10.0
_END = "end"
_ESTABLISHED = "01"  # in /proc/net/tcp


class Service:
  """The service in its child process, with the interface of JAX's own object."""

  def __init__(self, linger: float, address: str, *arguments: Any, **options: Any):
    """Starts the service and waits until it listens.

    Args:
      linger: seconds after which it ends, if process 0 is killed and others stay connected.
      address: "[::]:PORT" to listen on.
      *arguments: of jaxlib's get_distributed_runtime_service, JSON-ready.
      **options: of jaxlib's get_distributed_runtime_service, JSON-ready.

    Raises:
      RuntimeError: if it does not start.
    """
    self._process = subprocess.Popen(
        [sys.executable, __file__, json.dumps([linger, address, arguments, options])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    ready = select.select([self._process.stdout], [], [], _START_SECONDS)[0]
    if not ready or not self._process.stdout.readline():
      self._process.kill()
      raise RuntimeError(f"JAX's coordination service does not start on {address}; the log says why")

  def shutdown(self) -> None:
    """Ends the service."""
    try:
      self._process.communicate(_END.encode(), timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


def starter(linger: float) -> Callable[..., Service]:
  """Returns a function to use instead of jaxlib's get_distributed_runtime_service."""
  return lambda address, *arguments, **options: Service(linger, address, *arguments, **options)


def _serve(linger: float, address: str, arguments: list[Any], options: dict[str, Any]) -> None:
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for process 0, which decides
    signal.signal(number, signal.SIG_IGN)
  from jaxlib import _jax

  service = _jax.get_distributed_runtime_service(address, *arguments, **options)
  print("ready", flush=True)
  if sys.stdin.read() == _END:
    service.shutdown()
    return
  # Process 0 was killed. Whoever reads its output need not wait for this process.
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  os.dup2(nowhere, 2)
  deadline = time.monotonic() + linger
  while time.monotonic() < deadline and _is_connected(int(address.rpartition(":")[2])):
    time.sleep(0.2)
  os._exit(0)


def _is_connected(port: int) -> bool:
  """Returns whether others are connected to the port; True where the system does not list connections."""
  lines: list[str] = []
  for table in ("/proc/net/tcp", "/proc/net/tcp6"):
    if not os.path.exists(table):
      return True
    with open(table, encoding="ascii") as file:
      lines += file.readlines()[1:]
  fields = [line.split() for line in lines]
  return any(row[1].endswith(f":{port:04X}") and row[3] == _ESTABLISHED for row in fields)


if __name__ == "__main__":
  _serve(*json.loads(sys.argv[1]))
