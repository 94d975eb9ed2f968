"""Sends malformed, huge, slow and hostile requests: `python -m tests.campaigns.hostile --requests=2000`.

The server runs in a process of its own, with a model without networks (tests/serve/fakes.py). Each request
is right or damaged in one of the ways below. A damaged one must be answered with 4xx, or by the end of
the connection where the client itself breaks it; nothing may be answered with 5xx. The server's memory is
read on the way: the last quarter of the campaign must not need more than the second.
"""

import argparse
import base64
from collections.abc import Callable
import json
import pathlib
import random
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np

from tests.serve import fakes
from unilip_jax.common import json_file
from unilip_jax.serve import uploads

_HOST = "127.0.0.1"
_PNG = uploads.encode(fakes.image_of("", 0))
_BOUNDARY = "xYzZY"
_PATHS = ("/v1/images/generations", "/v1/images/edits", "/v1/chat/completions", "/v1/models", "/nothing",
          "/v1/models/%00%ff", "/v1/../../etc/passwd", "/ui/file=/etc/passwd", "/" + "a" * 5000)
_VALUES = (
    None, True, -1, 0, 1e400, float("nan"), 2**70, "", "\x00", "\ud800", "x" * 200_000, [], {}, [[]],
    {"a": {"b": []}}, "../../etc/passwd", "http://169.254.169.254/", "file:///etc/passwd", "1e9", "-0")
_FIELDS = (
    "prompt", "model", "n", "size", "seed", "num_inference_steps", "guidance_scale", "response_format",
    "output_format", "output_compression", "messages", "max_tokens", "temperature", "top_p", "stop",
    "stream", "stream_options", "extra_body", "width", "solver", "tools", "max_tiles")
_REFUSED = {  # what must be refused whatever else the request says
    "/v1/images/generations": {"prompt": "", "n": 2**70, "size": "x", "num_inference_steps": -1},
    "/v1/chat/completions": {"messages": [], "max_tokens": -1, "temperature": -1, "top_p": 0}}


class Client:
  """Makes and sends requests."""

  def __init__(self, port: int, seed: int):
    self._port, self._rng = port, random.Random(seed)
    self.kinds: list[Callable[[], tuple[bytes, bool]]] = [
        self._wrong_field, self._any_field, self._broken_json, self._deep_json, self._broken_form,
        self._wrong_length, self._too_large, self._wrong_image, self._bomb, self._address, self._noise,
        self._other_path, self._mutated, self._half, self._right]

  def send(self, kind: Callable[[], tuple[bytes, bool]]) -> tuple[int, bool]:
    """Sends one request; returns (status or 0 for none, whether it must be refused)."""
    data, refused = kind()
    with socket.create_connection((_HOST, self._port), timeout=20) as connection:
      try:
        connection.sendall(data)
        answer = b""
        while b"\r\n" not in answer and (part := connection.recv(4096)):
          answer += part
      except (ConnectionResetError, BrokenPipeError):  # the server closed a connection that sent too much
        return 0, False
    head = answer.split(b" ", 2)
    return (int(head[1]) if answer.startswith(b"HTTP/1.1 ") and len(head) > 1 else 0), refused

  # ---- requests: (bytes, whether they must be refused)

  def _wrong_field(self):
    path = self._rng.choice(list(_REFUSED))
    name = self._rng.choice(list(_REFUSED[path]))
    return _post(path, json.dumps(_right(path) | {name: _REFUSED[path][name]}).encode()), True

  def _any_field(self):
    path = self._rng.choice(list(_REFUSED))
    body = _right(path) | {self._rng.choice(_FIELDS): self._rng.choice(_VALUES)}
    return _post(path, json.dumps(body).encode()), False

  def _broken_json(self):
    body = json.dumps(_right("/v1/chat/completions")).encode()
    return _post("/v1/chat/completions", body[:self._rng.randrange(len(body))]), True

  def _deep_json(self):
    depth = self._rng.choice((2000, 200_000))
    opening, closing = self._rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return _post("/v1/chat/completions", opening * depth + b"1" + closing * depth), True

  def _broken_form(self):
    body = _form({"prompt": "a"}, {"image": _PNG})
    cut = body[:self._rng.randrange(10, len(body) - 30)]
    start = "multipart/form-data"
    kind = start + self._rng.choice(
        (f"; boundary={_BOUNDARY}", "", "; boundary=" + "b" * 300, "; boundary=\xff"))
    return _post("/v1/images/edits", cut, kind), True

  def _wrong_length(self):
    length = self._rng.choice((b"-1", b"1e3", b"99999999999999999999", b"0x10", b"", b"5, 6"))
    return (b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + length + b"\r\n\r\n{}"), True

  def _too_large(self):
    return _post("/v1/chat/completions", b"{" + b" " * (3 * 2**20)), True

  def _wrong_image(self):
    data = bytearray(_PNG)
    at = self._rng.randrange(len(data))
    data[at:] = self._rng.randbytes(self._rng.randrange(40)) if self._rng.random() < 0.5 else b""
    return _post("/v1/images/edits", _form({"prompt": "a"}, {"image": bytes(data)}), _FORM), False

  def _bomb(self):
    """A PNG of few bytes that says that it has 60 000 × 60 000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(
        ">I", zlib.crc32(kind + data))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(
        b"IEND", b"")
    return self._with_image(png)

  def _with_image(self, data: bytes):
    if self._rng.random() < 0.5:
      return _post("/v1/images/edits", _form({"prompt": "a"}, {"image[]": data}), _FORM), True
    return self._asking("data:image/png;base64," + base64.b64encode(data).decode())

  def _address(self):
    return self._asking(self._rng.choice((
        "http://127.0.0.1:1/a.png", "https://example.com/a.png", "file:///etc/passwd", "ftp://a", "data:",
        "", "data:image/png,abc", "data:image/png;base64,@@@", "data:image/svg+xml;base64,PHN2Zy8+", 5,
        None, {})))

  def _asking(self, url):
    body = _right("/v1/chat/completions")
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
    return _post("/v1/chat/completions", json.dumps(body).encode()), True

  def _noise(self):
    return self._rng.randbytes(self._rng.randrange(1, 3000)) + b"\r\n\r\n", True

  def _other_path(self):
    method = self._rng.choice(("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"))
    path = self._rng.choice([p for p in _PATHS if p != "/v1/models"])
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), True

  def _mutated(self):
    data = bytearray(_RIGHT)
    for _ in range(self._rng.randrange(1, 6)):
      data[self._rng.randrange(len(data))] = self._rng.randrange(256)
    return bytes(data), False

  def _half(self):
    return _RIGHT[:self._rng.randrange(1, len(_RIGHT) - 1)], False

  def _right(self):
    path = self._rng.choice(list(_REFUSED))
    return _post(path, json.dumps(_right(path)).encode()), False


_FORM = f"multipart/form-data; boundary={_BOUNDARY}"


def _right(path: str) -> dict:
  if path == "/v1/chat/completions":
    return {"model": "unilip", "max_tokens": 5, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]}]}
  return {"prompt": "a", "seed": 1}


def _post(path: str, body: bytes, kind: str = "application/json") -> bytes:
  return (f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
          .encode("latin-1") + body)


def _form(texts: dict[str, str], files: dict[str, bytes]) -> bytes:
  parts = [f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode()
           for k, v in texts.items()]
  parts += [f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"; filename="a"\r\n\r\n'.encode()
            + v + b"\r\n" for k, v in files.items()]
  return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


_RIGHT = _post("/v1/images/generations", json.dumps(_right("/v1/images/generations")).encode())


def _memory(pid: int) -> int:
  """Bytes of memory of a process."""
  pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
  return int(pages) * 4096


def campaign(port: int, count: int, seed: int = 0, pid: int = 0) -> dict:
  """Sends `count` requests; returns statuses, failures and, of process `pid`, the memory on the way."""
  client, statuses, failures, memory = Client(port, seed), {}, [], []
  for i in range(count):
    kind = client.kinds[i % len(client.kinds)]
    status, refused = client.send(kind)
    name = kind.__name__.strip("_")
    statuses.setdefault(name, {}).setdefault(str(status), 0)
    statuses[name][str(status)] += 1
    if status >= 500 or (refused and status and not 400 <= status < 500):
      failures.append(f"request {i}, {name}: {status}")
    if pid and i % 20 == 0:
      memory.append(_memory(pid))
  right, _ = client.send(client._right)
  if right != 200:
    failures.append(f"a right request after all others: {right}")
  return {"requests": count, "statuses": statuses, "failures": failures, "memory": memory}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--requests", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", required=True)
  args = parser.parse_args()
  with subprocess.Popen([sys.executable, "-m", "tests.campaigns.hostile_server"], stdout=subprocess.PIPE,
                        stdin=subprocess.PIPE, text=True) as server:
    port = int(server.stdout.readline())
    result = campaign(port, args.requests, args.seed, server.pid)
    server.stdin.close()
  quarters = [float(np.max(part)) for part in np.array_split(result.pop("memory"), 4)]
  result["memory_mib"] = [round(q / 2**20, 1) for q in quarters]
  if quarters[3] > 1.05 * quarters[1] + 8 * 2**20:
    result["failures"].append(f"memory grows: {result['memory_mib']} MiB in the four quarters")
  json_file.write(args.out, result)
  print(json.dumps(result, indent=1))
  sys.exit(bool(result["failures"]))


if __name__ == "__main__":
  main()
