"""A proxy on loopback in front of a storage server that answers late, with errors, or not to the end."""

from collections.abc import Callable
import dataclasses
import http.client
import http.server
import re
import socket
import sys
import threading
import time
import urllib.parse

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade",
        "http2-settings"}
_TRY = re.compile(r"[?&]tensorstore=[0-9a-f]+")
_TIMEOUT = 60


@dataclasses.dataclass(frozen=True)
class Fault:
  """What happens to one request.

  Attributes:
    delay: seconds before it is passed on.
    status: answered instead of passing it on; 0 passes it on.
    keep: fraction of the answer's bytes that are sent before the connection is cut; 1 sends all.
  """

  delay: float = 0.0
  status: int = 0
  keep: float = 1.0


@dataclasses.dataclass(frozen=True)
class Request:
  """A request as rules see it.

  Attributes:
    method: GET, POST, ...
    path: with the query, not quoted, without the number that TensorStore gives each try.
    number: how often the same method and path came before.
  """

  method: str
  path: str
  number: int


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128  # TensorStore opens dozens of connections at once

  def handle_error(self, request, client_address):
    """A client that hangs up is none of the proxy's errors."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class Proxy:
  """Forwards to `target`; `rule(Request)` returns the Fault of a request, or None for none.

  Attributes:
    url: of the proxy.
    rule: may be replaced while it runs.
    faults: number of requests that a fault met.
    bytes: of all answers.
  """

  def __init__(self, target: str, rule: Callable[[Request], Fault | None] = lambda request: None):
    self._target, self.rule, self.faults = urllib.parse.urlsplit(target).netloc, rule, 0
    self.bytes = 0
    self._counts: dict[tuple[str, str], int] = {}
    self._lock = threading.Lock()
    proxy = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"
      wbufsize = 1 << 16  # header and body in one packet: two would wait for each other's acknowledgement

      def log_message(self, *_):
        pass

      def _answer(self):
        proxy._forward(self)

      do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _answer

    self._server = _Server(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
    self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

  def __enter__(self) -> "Proxy":
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._server.shutdown()
    self._server.server_close()

  def _fault(self, method: str, path: str) -> Fault:
    path = _TRY.sub("", path)
    with self._lock:
      number = self._counts.get((method, path), 0)
      self._counts[method, path] = number + 1
    fault = self.rule(Request(method, urllib.parse.unquote(path), number))
    if fault is None:
      return Fault()
    self.faults += 1
    return fault

  def _forward(self, handler: http.server.BaseHTTPRequestHandler) -> None:
    body = _body(handler)
    fault = self._fault(handler.command, handler.path)
    time.sleep(fault.delay)
    if fault.status:
      return _send(handler, fault.status, {}, b"the proxy refuses", 1.0)
    connection = http.client.HTTPConnection(self._target, timeout=_TIMEOUT)
    try:
      headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP}
      connection.request(handler.command, handler.path, body, headers)
      answer = connection.getresponse()
      data = answer.read()
    finally:
      connection.close()
    self.bytes += len(data)
    headers = {name: value.replace(f"http://{self._target}", self.url)
               for name, value in answer.getheaders() if name.lower() not in _HOP}
    return _send(handler, answer.status, headers, data, fault.keep)


def _body(handler: http.server.BaseHTTPRequestHandler) -> bytes:
  if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
    return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
  body = b""
  while size := int(handler.rfile.readline().partition(b";")[0], 16):
    body += handler.rfile.read(size)
    handler.rfile.readline()
  handler.rfile.readline()
  return body


def _send(handler, status: int, headers: dict[str, str], data: bytes, keep: float) -> None:
  handler.send_response(status)
  for name, value in headers.items():
    handler.send_header(name, value)
  handler.send_header("Content-Length", str(len(data)))
  handler.end_headers()
  if handler.command != "HEAD":
    handler.wfile.write(data[:int(keep * len(data))])
  handler.wfile.flush()
  if keep < 1:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
