"""The page works, shows the server's own messages, and gives away no file; needs gradio (launch/serve.sh).

gradio takes an older Pillow than the package, so that these tests run in an environment of its own:
  .venv-serve/bin/python -m pytest tests/serve/page_test.py
"""

import contextlib
import http.client
import json
import threading
import time
import urllib.parse

import numpy as np
import pytest

from tests.serve import fakes
from unilip_jax.serve import app, options, server, service, uploads

pytest.importorskip("gradio", reason="the page's environment has it: see the docstring")
_KEY = "a secret"


class _Rows(fakes.Rows):
  is_shapes = True

  def image_flops(self, steps, *, editing):
    return 1e9 * steps


@contextlib.contextmanager
def _running(key=""):
  from unilip_jax.serve import page

  models = {"unilip": _Rows(), "other": _Rows()}
  served = service.Service(models, options.Limits(pixels=2**20), options.Offer((20, 10)))
  mounted = page.mount(app.make_app(served, key), served, key)
  runner = server.Server(mounted, served, host="127.0.0.1", port=0, grace=1.0)
  thread = threading.Thread(target=runner.run)
  thread.start()
  while not runner.started:
    time.sleep(0.01)
  try:
    yield runner.port, models["unilip"]
  finally:
    runner.should_exit = True
    thread.join(20)


def _request(port, method, path, body=None, headers=()):
  """(status, body) of a request to the page."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
  connection.request(method, path, body, dict(headers))
  answer = connection.getresponse()
  return answer.status, answer.read()


class _Browser:
  """Calls the page's events as its script does."""

  def __init__(self, port):
    self._port = port
    self.config = json.loads(_request(port, "GET", "/ui/config")[1])

  def event(self, target, values):
    """The data of the event of a button, or the message of its error."""
    number = next(d["id"] for d in self.config["dependencies"]
                  if [self._button(target), "click"] in [list(t) for t in d["targets"]])
    body = json.dumps({"data": values, "fn_index": number, "session_hash": "s", "event_data": None})
    status, text = _request(self._port, "POST", "/ui/gradio_api/queue/join", body,
                            [("content-type", "application/json")])
    assert status == 200, text
    connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
    connection.request("GET", "/ui/gradio_api/queue/data?session_hash=s")
    for line in connection.getresponse():
      if line.startswith(b"data: "):
        message = json.loads(line[6:])
        if message["msg"] == "process_completed":
          return message["output"].get("data") or message["output"].get("error")
    raise AssertionError("the stream ended")

  def _button(self, label):
    return next(c["id"] for c in self.config["components"]
                if c["type"] == "button" and c["props"].get("value") == label)

  def pixels(self, image):
    """uint8[H, W, 3] of an image of the answer, which must be PNG."""
    path = urllib.parse.urlsplit(image["url"]).path
    status, data = _request(self._port, "GET", path)
    assert (status, data[:4]) == (200, b"\x89PNG")
    return uploads.from_bytes(data, "image", 2**20)

  def upload(self, data):
    """Uploads a file; returns the value of an image component."""
    boundary = "b"
    body = (f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
            "Content-Type: image/png\r\n\r\n").encode() + data + f"\r\n--{boundary}--\r\n".encode()
    status, text = _request(self._port, "POST", "/ui/gradio_api/upload", body,
                            [("content-type", f"multipart/form-data; boundary={boundary}")])
    assert status == 200
    return {"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}


@pytest.fixture(scope="module")
def running():
  with _running() as running:
    yield running


@pytest.fixture(scope="module")
def browser(running):
  return _Browser(running[0])


def _options(seed="5", count=2, steps="10", model="unilip"):
  return [steps, 4.5, count, seed, "28x28", model]


def test_images_are_generated_as_png_with_their_seeds_and_cost(browser):
  gallery, note, cost = browser.event("Generate", ["a cat", *_options()])
  assert [item["caption"] for item in gallery] == ["seed 5", "seed 6"]
  for item, seed in zip(gallery, (5, 6)):
    np.testing.assert_array_equal(browser.pixels(item["image"]), fakes.image_of("a cat", seed))
  assert "seeds 5, 6" in note
  assert "20 GFLOP" in cost


def test_edits_and_reconstructions_take_uploads(browser):
  source = fakes.image_of("", 1)
  file = browser.upload(uploads.encode(source))
  gallery, _, _ = browser.event("Edit", [file, "invert", *_options(count=1)])
  np.testing.assert_array_equal(browser.pixels(gallery[0]["image"]), 255 - source)
  gallery, note = browser.event("Reconstruct", [file, "unilip"])
  assert len(gallery) == 2
  assert note == "PSNR inf dB"


def test_a_conversation_continues(browser):
  history, question = browser.event("Ask", [None, "hello", [], "unilip", 0.0, 64, ""])
  texts = [m["content"] if isinstance(m["content"], str) else m["content"][0]["text"] for m in history]
  assert (texts, question) == (["hello", "hello"], "")
  history, _ = browser.event("Ask", [None, "more", history, "unilip", 0.0, 64, ""])
  assert len(history) == 4


def test_two_checkpoints_are_compared_with_one_seed(browser):
  first, second, note = browser.event("Compare", ["a cat", None, "20", 4.5, "3"])
  for gallery in (first, second):
    np.testing.assert_array_equal(browser.pixels(gallery[0]["image"]), fakes.image_of("a cat", 3))
  assert note == "seed 3 for both"


@pytest.mark.parametrize(("values", "message"), [
    (["", *_options()], "the prompt is empty"), (["a", *_options(seed="x")], "write an integer"),
    (["a", *_options(count=99)], "maximum value 8"), (["a", *_options(steps="10")[:-1], "none"], None),
    (["a", "11", *_options()[1:]], None)], ids=["prompt", "seed", "count", "model", "steps"])
def test_mistakes_are_told(browser, values, message):
  said = browser.event("Generate", values)
  assert isinstance(said, str)
  assert message is None or message in said


def test_exceptions_are_not_shown(browser, running):
  _, rows = running
  rows.fail = RuntimeError("/secret/path")
  try:
    said = browser.event("Generate", ["a", *_options()])
  finally:
    rows.fail = None
  assert "secret" not in str(said)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", __file__])
def test_no_file_of_the_host_is_given_away(running, path):
  status, _ = _request(running[0], "GET", f"/ui/gradio_api/file={urllib.parse.quote(path)}")
  assert status in (403, 404)


def test_a_path_of_the_host_is_not_an_upload(browser):
  file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
  said = browser.event("Edit", [file, "a", *_options()])
  assert isinstance(said, str) or said is None


def test_nothing_is_shared_and_the_api_is_hidden(browser):
  assert not browser.config.get("is_space")
  assert browser.config.get("share") in (None, False)
  assert all(d["api_visibility"] in ("private", "undocumented") for d in browser.config["dependencies"])


def test_the_key_is_the_password_of_the_page():
  with _running(_KEY) as (port, _):
    assert _request(port, "GET", "/ui/config")[0] == 401
    login = lambda password: _request(
        port, "POST", "/ui/login", urllib.parse.urlencode({"username": "unilip", "password": password}),
        [("content-type", "application/x-www-form-urlencoded")])[0]
    assert login("wrong") == 400
    assert login(_KEY) == 200
