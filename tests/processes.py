"""Starts several processes of a module as the hosts of one run, and waits until they end."""

from collections.abc import Mapping, Sequence
import contextlib
import pathlib
import socket
import subprocess
import sys
import threading
import time

from tests import cpu_devices

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def end(pids: Sequence[int], timeout: float = 5.0) -> bool:
  """Waits until processes have ended; returns whether they have. Linux."""
  deadline = time.monotonic() + timeout
  while any(map(_is_running, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  return not any(map(_is_running, pids))


def _is_running(pid: int) -> bool:
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state != "Z"  # ended, and its parent has not read its status yet


class Processes:
  """`python -m MODULE ARGUMENTS` as `count` processes of one run.

  Attributes:
    started: {index: subprocess.Popen}.
    seconds: {index: seconds from the start to the end of the process}.
  """

  def __init__(
      self, module: str, arguments: Sequence[str], count: int, *, devices: int = 1,
      env: Mapping[str, str] | None = None):
    """Starts the processes.

    Args:
      module: to run.
      arguments: of every process.
      count: number of processes.
      devices: CPU devices of each process.
      env: further environment variables.
    """
    with socket.socket() as s:
      s.bind(("localhost", 0))
      port = s.getsockname()[1]
    common = cpu_devices.environment(devices) | {
        "UNILIP_COORDINATOR": f"localhost:{port}", "UNILIP_PROCESS_COUNT": str(count)} | dict(env or {})
    self._begin, self.seconds, self._output = time.monotonic(), {}, {}
    self.started = {
        i: subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=_ROOT,
            env=common | {"UNILIP_PROCESS_INDEX": str(i)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        for i in range(count)}
    self._threads = [threading.Thread(target=self._read, args=item) for item in self.started.items()]
    for thread in self._threads:
      thread.start()

  def _read(self, index: int, process: subprocess.Popen) -> None:
    self._output[index] = process.communicate()[0]
    self.seconds[index] = time.monotonic() - self._begin

  def wait(self, timeout: float = 240.0) -> dict[int, tuple[int, str]]:
    """Returns {index: (exit status, output)}; kills the processes that have not ended in time."""
    deadline = time.monotonic() + timeout
    for thread in self._threads:
      thread.join(max(0.0, deadline - time.monotonic()))
    hanging = [i for i, process in self.started.items() if process.poll() is None]
    self.kill()
    outputs = {i: (process.returncode, self._output[i]) for i, process in self.started.items()}
    assert not hanging, (f"processes {hanging} had not ended after {timeout:.0f} s",
                         {i: text[-2000:] for i, (_, text) in outputs.items()})
    return outputs

  def kill(self) -> None:
    """Kills the processes that still run."""
    for process in self.started.values():
      with contextlib.suppress(ProcessLookupError):
        process.kill()
    for thread in self._threads:
      thread.join(30)

  def __enter__(self) -> "Processes":
    return self

  def __exit__(self, *_) -> None:
    self.kill()
