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
import selectors
import socket
import time
from typing import Any

from absl import logging

from unilip_jax.common import errors

_RETRY_SECONDS = 0.5
_ANSWER_SECONDS = 10.0  # after the timeout, for the answer that names who is missing
_MAX_BYTES = 2**20  # of one process's line
_ROW_SECONDS = 5.0  # until a connection has sent its line
_MAX_CONNECTIONS = 256  # that have not sent their line
_MAX_LOGGED = 20
# Lines that processes send: a process's row; process 0's answers.
_KINDS = ({"index": int, "count": int, "host": str, "command": list}, {"error": str, "late": bool},
          {"hosts": list})


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
  waiting: list[tuple[int, socket.socket]] = []  # to answer; a doubled index is there twice
  error, late = "", False
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(host, port, own, deadline))
    arrivals = stack.enter_context(contextlib.closing(_Arrivals(server, port)))
    logging.info("process 0 waits for %d others on port %d", own["count"] - 1, port)
    while len(present) < own["count"] and not error:
      left = deadline - time.monotonic()
      if left <= 0:
        late = True
        missing = [str(i) for i in range(own["count"]) if i not in present]
        error = (f"{len(missing)} of {own['count']} processes did not connect within {timeout:.0f} s: "
                 f"{', '.join(missing)} (connected: {_describe(present)}). See the logs of those hosts; "
                 f"every host must be started and must reach {host}:{port}")
        break
      for row, connection in arrivals.poll(min(left, 1.0)):
        stack.enter_context(connection)
        for index, other in [w for w in waiting if _has_hung_up(w[1])]:
          present.pop(index, None)  # killed since; it connects again, or is named as missing
          waiting.remove((index, other))
        waiting.append((row["index"], connection))
        error = error or _conflict(own, present, row)
        present.setdefault(row["index"], row)
    answer = {"error": error, "late": late}
    if not error:
      answer = {"hosts": [present[i]["host"] for i in range(own["count"])]}
    for _, connection in waiting:
      with contextlib.suppress(OSError):  # a process that is gone needs no answer
        connection.sendall(json.dumps(answer).encode() + b"\n")
  if error:
    raise (AbsentError if late else MeetingError)(error)
  return answer["hosts"]


class _Arrivals:
  """Reads the rows of all connections at once; what is not a row is ignored, at bounded cost."""

  def __init__(self, server: socket.socket, port: int):
    self._port = port
    self._selector = selectors.DefaultSelector()
    self._selector.register(server, selectors.EVENT_READ)
    self._server = server
    # {connection: (address, time until which its row must be complete, bytes so far)}
    self._reading: dict[socket.socket, tuple[str, float, bytearray]] = {}
    self._ignored = 0

  def poll(self, seconds: float) -> list[tuple[dict[str, Any], socket.socket]]:
    """Waits for at most `seconds`; returns the rows that are complete, each with its connection."""
    rows = []
    for key, _ in self._selector.select(seconds):
      ready = key.fileobj
      if ready is self._server:
        connection, peer = self._server.accept()
        connection.settimeout(_ROW_SECONDS)  # of the answer; reads follow select
        self._reading[connection] = (peer[0], time.monotonic() + _ROW_SECONDS, bytearray())
        self._selector.register(connection, selectors.EVENT_READ)
        continue
      data = self._reading[ready][2]
      try:
        part = ready.recv(65536)
      except OSError:
        part = b""
      data += part
      if part and not part.endswith(b"\n") and len(data) < _MAX_BYTES:
        continue
      row = _parse(bytes(data)) if part else None
      if row is None or "index" not in row:
        self._ignore(ready, f"it sent {len(data)} bytes that are no row of a process")
      else:
        self._forget(ready)
        rows.append((row, ready))
    now = time.monotonic()
    for connection in [c for c, (_, end, _) in self._reading.items() if now > end]:
      self._ignore(connection, f"it sent no row within {_ROW_SECONDS:.0f} s")
    while len(self._reading) > _MAX_CONNECTIONS:
      self._ignore(next(iter(self._reading)), f"more than {_MAX_CONNECTIONS} connections are open")
    return rows

  def close(self) -> None:
    """Closes the connections whose row is not complete."""
    for connection in self._reading:
      connection.close()
    self._selector.close()
    if self._ignored > _MAX_LOGGED:
      logging.warning("ignored %d connections to port %d in all", self._ignored, self._port)

  def _ignore(self, connection: socket.socket, why: str) -> None:
    peer = self._forget(connection)
    connection.close()
    self._ignored += 1
    if self._ignored <= _MAX_LOGGED:
      logging.warning("ignored a connection from %s to port %d: not a process of this run (%s)",
                      peer, self._port, why)


  def _forget(self, connection: socket.socket) -> str:
    """Stops reading a connection; returns its address."""
    self._selector.unregister(connection)
    return self._reading.pop(connection)[0]


def _listen(host: str, port: int, own: dict[str, Any], deadline: float) -> socket.socket:
  """Opens the port, once a run that is just ending has left it.

  Raises:
    MeetingError: if another process 0 listens at the coordinator's address, or another program on the port.
  """
  while True:
    if doubled := _error_of_holder(host, port, own):
      raise MeetingError(doubled)
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


def _error_of_holder(host: str, port: int, own: dict[str, Any]) -> str:
  """Sends this process's row to the coordinator's address; returns the error if a process 0 answers."""
  try:
    with socket.create_connection((host, port), timeout=1) as connection:
      connection.sendall(json.dumps(own).encode() + b"\n")
      answer = _read(connection, 2.0)
  except OSError:
    return ""
  return (answer or {}).get("error", "")


def _has_hung_up(connection: socket.socket) -> bool:
  poll = select.poll()
  poll.register(connection, select.POLLIN)
  if not poll.poll(0):
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
  if row["index"] not in range(own["count"]):
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


def _read(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
  """Reads the line of a process; None for anything else."""
  deadline, data = time.monotonic() + seconds, bytearray()
  try:
    while not data.endswith(b"\n") and len(data) < _MAX_BYTES:
      connection.settimeout(max(0.01, deadline - time.monotonic()))
      part = connection.recv(65536)
      if not part:
        return None
      data += part
  except OSError:
    return None
  return _parse(bytes(data))


def _parse(line: bytes) -> dict[str, Any] | None:
  """Parses the row of a process, or the answer of process 0; None for anything else."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return None
  if not isinstance(row, dict):
    return None
  kinds = next((k for k in _KINDS if k.keys() == row.keys()), None)
  if kinds is None or any(type(row[name]) is not kind for name, kind in kinds.items()):
    return None
  texts = row.get("command", row.get("hosts", []))
  return row if all(isinstance(text, str) for text in texts) else None
