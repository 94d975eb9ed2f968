"""Hosts meet before JAX starts: who is there, who is missing, and whether all run the same command.

JAX's own start ends the process from within C++ when a host is absent, without saying which. So the
processes first meet here: process 0 listens on the coordinator's port, the others tell it who they are,
and it answers all of them at once. Then it gives the port up to JAX. No accelerator is touched.
"""

from collections.abc import Sequence
import contextlib
import json
import select
import socket
import time
from typing import Any

from absl import logging

from unilip_jax.common import errors

_RETRY_SECONDS = 0.5
_ANSWER_SECONDS = 10.0  # beyond the timeout, for the answer that names the missing
_MAX_BYTES = 2**20  # of one process's line


class MeetingError(ValueError):
  """The processes did not come together; the message says who is missing or what differs."""


class AbsentError(MeetingError, errors.TryAgainError):
  """Some did not come in time: to be started again."""


def meet(
    address: str, count: int, index: int, command: Sequence[str], timeout: float
) -> list[str]:
  """Waits until all processes are there.

  Args:
    address: HOST:PORT of process 0; every process is given the same.
    count: of processes.
    index: of this process.
    command: what every process has to be started with alike.
    timeout: seconds to wait.

  Returns:
    The host names of processes 0 … count − 1.

  Raises:
    AbsentError: if some have not come at the end, or the coordinator cannot be reached.
    MeetingError: if two differ in index, count or command.
  """
  host, port = split_address(address)
  own = {"index": index, "count": count, "host": socket.gethostname(), "command": list(command)}
  deadline = time.monotonic() + timeout
  if index == 0:
    return _receive(host, port, own, deadline, timeout)
  return _join(host, port, own, deadline, timeout)


def split_address(address: str) -> tuple[str, int]:
  """(host, port) of "HOST:PORT".

  Raises:
    MeetingError: if it is something else.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise MeetingError(f"coordinator {address!r}: expected HOST:PORT, e.g. 10.0.0.2:8476")
  return host.strip("[]"), int(port)


def _receive(host, port, own, deadline, timeout) -> list[str]:
  """Process 0: collects the others, then answers all of them."""
  came: dict[int, dict[str, Any]] = {0: own}
  late = False
  waiting: dict[int, socket.socket] = {}
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(port, deadline))
    logging.info("process 0 waits for %d others on port %d", own["count"] - 1, port)
    error = ""
    while len(came) < own["count"] and not error:
      left = deadline - time.monotonic()
      if left <= 0:
        late = True
        missing = [str(i) for i in range(own["count"]) if i not in came]
        error = (f"{len(missing)} of {own['count']} processes did not come within {timeout:.0f} s: "
                 f"{', '.join(missing)} (here: {_present(came)}). Look at the logs of those hosts; every "
                 f"host has to be started, and to reach {host}:{port}")
        break
      if not select.select([server], [], [], min(left, 1.0))[0]:
        continue
      connection, peer = server.accept()
      stack.enter_context(connection)
      row = _read(connection)
      if row is None:
        logging.warning("%s spoke to port %d, but not as one of this run", peer[0], port)
        continue
      for index in [i for i, other in waiting.items() if _has_hung_up(other)]:
        del came[index], waiting[index]  # killed since; to be started again, or named as missing
      error = _conflict(own, came, row)
      came[row["index"]], waiting[row["index"]] = row, connection
    answer = {"error": error, "late": late}
    if not error:
      answer = {"hosts": [came[i]["host"] for i in range(own["count"])]}
    for connection in waiting.values():
      with contextlib.suppress(OSError):  # whoever has gone away needs no answer
        connection.sendall(json.dumps(answer).encode() + b"\n")
  if error:
    raise (AbsentError if late else MeetingError)(error)
  return answer["hosts"]


def _listen(port: int, deadline: float) -> socket.socket:
  """Opens the port; that of a run which is just ending may take a moment to be free."""
  while True:
    try:
      if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
      return socket.create_server(("", port), backlog=1024)
    except OSError as error:
      if time.monotonic() > deadline:
        raise MeetingError(
            f"process 0 cannot listen on port {port} ({error.strerror}): another program, or a run from "
            "before, holds it; end that, or give another port to --coordinator") from error
    time.sleep(_RETRY_SECONDS)


def _has_hung_up(connection: socket.socket) -> bool:
  if not select.select([connection], [], [], 0)[0]:
    return False
  try:
    return not connection.recv(1, socket.MSG_PEEK)
  except OSError:
    return True


def _conflict(own, came, row) -> str:
  """What is wrong with a process that has come; "" if nothing."""
  name = f"process {row['index']} ({row['host']})"
  if row["count"] != own["count"]:
    return f"{name} was told of {row['count']} processes, process 0 ({own['host']}) of {own['count']}"
  if not 0 < row["index"] < own["count"]:
    return f"{name} is none of {own['count']}, which are numbered from 0"
  if row["index"] in came:
    return f"two processes have index {row['index']}: on {came[row['index']]['host']} and {row['host']}"
  if row["command"] != own["command"]:
    only = lambda a, b: " ".join(x for x in a if x not in b) or "nothing"
    return (f"{name} was started with another command: it alone has "
            f"{only(row['command'], own['command'])}; process 0 ({own['host']}) alone has "
            f"{only(own['command'], row['command'])}")
  return ""


def _present(came) -> str:
  return ", ".join(f"{i} on {came[i]['host']}" for i in sorted(came))


def _join(host, port, own, deadline, timeout) -> list[str]:
  """Any other process: tells process 0 who it is and waits for the answer."""
  last = "no answer"
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(json.dumps(own).encode() + b"\n")
        left = max(0.0, deadline - time.monotonic()) + _ANSWER_SECONDS
        answer = _read(connection, left)
    except OSError as error:
      last = str(error)
    else:
      if answer is not None and "hosts" in answer:
        return answer["hosts"]
      if answer is not None and "error" in answer:
        raise (AbsentError if answer["late"] else MeetingError)(answer["error"])
      last = "the connection was closed without an answer"
    time.sleep(_RETRY_SECONDS)
  raise AbsentError(
      f"process {own['index']} of {own['count']} on {own['host']} cannot reach the coordinator "
      f"{host}:{port} within {timeout:.0f} s ({last}). Check that process 0 runs there, that every host "
      f"is given this address, that the name resolves (getent hosts {host}), and that no firewall "
      f"closes TCP port {port}")


def _read(connection: socket.socket, seconds: float = 5.0) -> dict[str, Any] | None:
  """One JSON object on a line; None for anything else."""
  deadline, data = time.monotonic() + seconds, b""
  try:
    while not data.endswith(b"\n") and len(data) < _MAX_BYTES:
      connection.settimeout(max(0.01, deadline - time.monotonic()))
      part = connection.recv(65536)
      if not part:
        return None
      data += part
    row = json.loads(data)
  except (OSError, ValueError):
    return None
  known = isinstance(row, dict) and (
      row.keys() == {"index", "count", "host", "command"} or row.keys() in ({"error", "late"}, {"hosts"}))
  return row if known else None
