"""Hosts meet before JAX starts: finds who is missing, and whether all run the same command.

jax.distributed.initialize ends the process from within C++ when a host is absent, and does not name it.
So the processes first meet here: process 0 listens on the coordinator's port, the others send their number,
host name and command, and process 0 answers all of them at once. Then it leaves the port to JAX. No
accelerator is used.
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
_ANSWER_SECONDS = 10.0  # after the timeout, for the answer that names who is missing
_MAX_BYTES = 2**20  # of one process's line


class MeetingError(ValueError):
  """The processes did not meet; the message names who is missing or what differs."""


class AbsentError(MeetingError, errors.TryAgainError):
  """Some processes did not start in time: start the run again."""


def meet(
    address: str, count: int, index: int, command: Sequence[str], timeout: float
) -> list[str]:
  """Waits until all processes have connected.

  Args:
    address: HOST:PORT of process 0, the same on every process.
    count: number of processes.
    index: number of this process.
    command: the arguments that must be the same on every process.
    timeout: seconds to wait.

  Returns:
    The host names of processes 0 … count − 1.

  Raises:
    AbsentError: if some have not connected in time, or the coordinator cannot be reached.
    MeetingError: if two differ in index, count or command.
  """
  host, port = split_address(address)
  own = {"index": index, "count": count, "host": socket.gethostname(), "command": list(command)}
  deadline = time.monotonic() + timeout
  if index == 0:
    return _receive(host, port, own, deadline, timeout)
  return _join(host, port, own, deadline, timeout)


def split_address(address: str) -> tuple[str, int]:
  """Splits "HOST:PORT" into (host, port).

  Raises:
    MeetingError: if the address has another form.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise MeetingError(f"coordinator {address!r}: expected HOST:PORT, e.g. 10.0.0.2:8476")
  return host.strip("[]"), int(port)


def _receive(host, port, own, deadline, timeout) -> list[str]:
  """Runs on process 0: collects the rows of the others, then answers all of them."""
  present: dict[int, dict[str, Any]] = {0: own}
  late = False
  waiting: dict[int, socket.socket] = {}
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(port, deadline))
    logging.info("process 0 waits for %d others on port %d", own["count"] - 1, port)
    error = ""
    while len(present) < own["count"] and not error:
      left = deadline - time.monotonic()
      if left <= 0:
        late = True
        missing = [str(i) for i in range(own["count"]) if i not in present]
        error = (f"{len(missing)} of {own['count']} processes did not connect within {timeout:.0f} s: "
                 f"{', '.join(missing)} (connected: {_describe(present)}). See the logs of those hosts; "
                 f"every host must be started and must reach {host}:{port}")
        break
      if not select.select([server], [], [], min(left, 1.0))[0]:
        continue
      connection, peer = server.accept()
      stack.enter_context(connection)
      row = _read(connection)
      if row is None:
        logging.warning("ignored a connection from %s to port %d: not a process of this run", peer[0], port)
        continue
      for index in [i for i, other in waiting.items() if _has_hung_up(other)]:
        del present[index], waiting[index]  # killed since; it connects again, or is named as missing
      error = _conflict(own, present, row)
      present[row["index"]], waiting[row["index"]] = row, connection
    answer = {"error": error, "late": late}
    if not error:
      answer = {"hosts": [present[i]["host"] for i in range(own["count"])]}
    for connection in waiting.values():
      with contextlib.suppress(OSError):  # a process that is gone needs no answer
        connection.sendall(json.dumps(answer).encode() + b"\n")
  if error:
    raise (AbsentError if late else MeetingError)(error)
  return answer["hosts"]


def _listen(port: int, deadline: float) -> socket.socket:
  """Opens the port, once a run that is just ending has left it."""
  while True:
    try:
      if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
      return socket.create_server(("", port), backlog=1024)
    except OSError as error:
      if time.monotonic() > deadline:
        raise MeetingError(
            f"process 0 cannot listen on port {port} ({error.strerror}): another program, or an "
            "earlier run, uses it; end that, or give another port to --coordinator") from error
    time.sleep(_RETRY_SECONDS)


def _has_hung_up(connection: socket.socket) -> bool:
  if not select.select([connection], [], [], 0)[0]:
    return False
  try:
    return not connection.recv(1, socket.MSG_PEEK)
  except OSError:
    return True


def _conflict(own, present, row) -> str:
  """Returns what is wrong with a process that has connected; "" if nothing."""
  name = f"process {row['index']} ({row['host']})"
  if row["count"] != own["count"]:
    return f"{name} was started for {row['count']} processes, process 0 ({own['host']}) for {own['count']}"
  if not 0 < row["index"] < own["count"]:
    return f"{name} is none of {own['count']} processes, numbered from 0"
  if row["index"] in present:
    return f"two processes have index {row['index']}: on {present[row['index']]['host']} and {row['host']}"
  if row["command"] != own["command"]:
    only = lambda a, b: " ".join(x for x in a if x not in b) or "nothing"
    return (f"{name} was started with another command: it alone has "
            f"{only(row['command'], own['command'])}; process 0 ({own['host']}) alone has "
            f"{only(own['command'], row['command'])}")
  return ""


def _describe(present) -> str:
  return ", ".join(f"{i} on {present[i]['host']}" for i in sorted(present))


def _join(host, port, own, deadline, timeout) -> list[str]:
  """Runs on every other process: sends its row to process 0 and waits for the answer."""
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
      f"has this address, that the name resolves (getent hosts {host}), and that no firewall closes "
      f"TCP port {port}")


def _read(connection: socket.socket, seconds: float = 5.0) -> dict[str, Any] | None:
  """Reads one JSON object on a line; None for anything else."""
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
