"""An OpenAI-compatible endpoint in a thread of the test: right, malformed, refusing, slow and failing."""

import collections
from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import http.server
import json
import threading
import time
from typing import Any


@dataclasses.dataclass
class Answer:
  """Holds one HTTP answer.

  Attributes:
    text: of the completion.
    status: of HTTP; above 200, `text` is the error's message.
    headers: further ones.
    refusal, finish_reason, model: of the completion.
    code: of the error.
    raw: body that is sent instead.
    delay: seconds before the answer.
    drip: seconds between single bytes of the body.
    drop: close the connection without an answer.
  """

  text: str = ""
  status: int = 200
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  refusal: str | None = None
  finish_reason: str = "stop"
  model: str = "judge-2025-01-01"
  code: str = ""
  raw: bytes | None = None
  delay: float = 0.0
  drip: float = 0.0
  drop: bool = False


class Server:
  """Answers by `answer(body, number of this request)`.

  Attributes:
    url: base_url of the endpoint.
    seen: (path, headers, body) of every request.
    paid: {Idempotency-Key: number of answers that were computed}; an endpoint that knows the header
      (`idempotent`) computes once and repeats its answer.
    most: requests that were answered at once, at most.
  """

  def __init__(
      self, answer: Callable[[Mapping[str, Any], int], Answer], *, idempotent: bool = True):
    self.seen, self.paid, self.most = [], {}, 0
    self._answer, self._lock, self._now = answer, threading.Lock(), 0
    self._kept: dict[str, bytes] = {}
    self._locks = collections.defaultdict(threading.Lock)  # of each key
    self._idempotent = idempotent
    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

  def __enter__(self) -> "Server":
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._server.shutdown()
    self._thread.join()
    self._server.server_close()

  def handle(self, handler: http.server.BaseHTTPRequestHandler) -> None:
    length = int(handler.headers["Content-Length"])
    content = handler.rfile.read(length)
    if len(content) < length:  # the client was killed
      return
    key = handler.headers["Idempotency-Key"]
    with self._lock:
      lock = self._locks[key] if self._idempotent else contextlib.nullcontext()
    with lock:
      self._handle(handler, json.loads(content), key)

  def _handle(self, handler, body: Mapping[str, Any], key: str) -> None:
    with self._lock:
      self.seen.append((handler.path, dict(handler.headers), body))
      number = len(self.seen)
      self._now += 1
      self.most = max(self.most, self._now)
      kept = self._kept.get(key) if self._idempotent else None
    try:
      answer = self._answer(body, number) if kept is None else Answer(raw=kept)
      if answer.delay:
        time.sleep(answer.delay)
      content = answer.raw if answer.raw is not None else _body(answer)
      with self._lock:
        if answer.status == 200 and answer.raw is None and not answer.drop:
          self.paid[key] = self.paid.get(key, 0) + 1
          self._kept[key] = content
      with contextlib.suppress(OSError):  # the client has gone
        _send(handler, answer, content)
    finally:
      with self._lock:
        self._now -= 1


def _body(answer: Answer) -> bytes:
  if answer.status != 200:
    return json.dumps({"error": {"message": answer.text, "code": answer.code}}).encode()
  return json.dumps({
      "model": answer.model, "usage": {"prompt_tokens": 100, "completion_tokens": 10},
      "choices": [{"finish_reason": answer.finish_reason, "message": {
          "role": "assistant", "content": answer.text, "refusal": answer.refusal}}]}).encode()


def _send(handler, answer: Answer, content: bytes) -> None:
  if answer.drop:
    handler.close_connection = True
    return
  handler.send_response(answer.status)
  for name, value in answer.headers.items():
    handler.send_header(name, value)
  handler.send_header("Content-Length", str(len(content)))
  handler.end_headers()
  if not answer.drip:
    handler.wfile.write(content)
    return
  for byte in content:
    handler.wfile.write(bytes([byte]))
    handler.wfile.flush()
    time.sleep(answer.drip)


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      server.handle(self)

    def log_message(self, *args):
      """Keeps the test's output clean."""

  return Handler


def texts(body: Mapping[str, Any]) -> str:
  """All text of a request."""
  return "\n".join(part["text"] for message in body["messages"] for part in message["content"]
                   if part["type"] == "text")


def images(body: Mapping[str, Any]) -> list[str]:
  """The data URLs of a request."""
  return [part["image_url"]["url"] for message in body["messages"] for part in message["content"]
          if part["type"] == "image_url"]
