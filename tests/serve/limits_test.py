"""A full queue, clients that leave, slow and huge requests, failures and the stop."""

import concurrent.futures
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest

from tests.campaigns import hostile, hostile_server
from tests.serve import fakes
from unilip_jax.serve import options


def _post(running, body, path="/v1/images/generations", timeout=20):
  """(status, headers, body) of a request."""
  request = urllib.request.Request(running.url + path, json.dumps(body).encode(),
                                   {"content-type": "application/json"})
  try:
    with urllib.request.urlopen(request, timeout=timeout) as answer:
      return answer.status, answer.headers, json.loads(answer.read())
  except urllib.error.HTTPError as error:
    return error.code, error.headers, json.loads(error.read())


@pytest.fixture
def running():
  with fakes.running(limits=options.Limits(queue=4, body_bytes=2**16, read_seconds=1.0)) as running:
    yield running


def _opened(running, body, path="/v1/images/generations"):
  """A connection with a request that is not read."""
  connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
  connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
  return connection


def _held(running, body=None, path="/v1/images/generations"):
  """A request that runs until the gate opens."""
  running.rows.gate.clear()
  running.rows.started.clear()
  connection = _opened(running, body or {"prompt": "first"}, path)
  assert running.rows.started.wait(10)
  return connection


def test_a_full_queue_answers_429_with_the_seconds_to_wait(running):
  held = _held(running)
  waiting = [_opened(running, {"prompt": "b", "n": 2}) for _ in range(2)]
  running.wait(lambda: running.served.scheduler.waiting() == 4)
  status, headers, body = _post(running, {"prompt": "c"})
  assert (status, body["error"]["code"]) == (429, "queue_full")
  assert 1 <= int(headers["retry-after"]) <= 120
  status, _, body = _post(running, {"messages": [{"role": "user", "content": "a"}], "stream": True},
                          "/v1/chat/completions")
  assert (status, body["error"]["type"]) == (429, "rate_limit_error")  # a stream too has the status
  running.rows.gate.set()
  for connection in (held, *waiting):
    assert connection.getresponse().status == 200
    connection.close()
  assert running.rows.batches[1] == ("generate", 4)  # what waited ran at once


def test_clients_that_leave_free_their_places(running):
  held = _held(running)
  waiting = [_opened(running, {"prompt": "b", "n": 2}) for _ in range(2)]
  running.wait(lambda: running.served.scheduler.waiting() == 4)
  for connection in waiting:
    connection.sock.close()
  running.wait(lambda: running.served.scheduler.waiting() == 0)
  running.rows.gate.set()
  assert held.getresponse().status == 200
  running.wait(lambda: running.served.open_requests == 0)
  assert running.rows.batches == [("generate", 1)]
  assert b"unilip_cancelled_total 2.0" in running.served.metrics.text(0, 0)


def test_an_answer_is_not_continued_for_a_client_that_left(running):
  body = {"messages": [{"role": "user", "content": "a" * 400}], "stream": True}
  held = _held(running, body, "/v1/chat/completions")
  held.sock.close()
  running.wait(lambda: running.served.open_requests == 0)
  running.rows.gate.set()
  running.wait(lambda: running.served.scheduler.idle)
  assert running.rows.answer_parts < 10  # of 200
  assert b"unilip_cancelled_total 1.0" in running.served.metrics.text(0, 0)


def test_an_image_does_not_wait_for_the_end_of_a_long_answer(running):
  body = {"messages": [{"role": "user", "content": "a" * 400}]}
  held = _held(running, body, "/v1/chat/completions")
  image = _opened(running, {"prompt": "b"})
  running.wait(lambda: running.served.scheduler.waiting() == 1)
  parts = running.rows.answer_parts
  running.rows.gate.set()
  assert image.getresponse().status == 200
  assert running.rows.batches[-1] == ("generate", 1)
  assert held.getresponse().status == 200
  assert running.rows.answer_parts > parts + 100


def test_rows_of_other_options_run_in_other_batches(running):
  held = _held(running)
  bodies = [{"prompt": "b"}, {"prompt": "c", "guidance_scale": 2.0}, {"prompt": "d"}]
  waiting = []
  for i, body in enumerate(bodies):
    waiting.append(_opened(running, body))
    running.wait(lambda i=i: running.served.scheduler.waiting() == i + 1)
  running.rows.gate.set()
  for connection in (held, *waiting):
    assert connection.getresponse().status == 200
  assert running.rows.batches == [("generate", n) for n in (1, 2, 1)]


def test_a_failure_is_logged_and_tells_clients_nothing(running):
  running.rows.fail = RuntimeError("/secret/path")
  status, headers, body = _post(running, {"prompt": "a"})
  assert (status, body["error"]["code"]) == (500, "internal_error")
  assert "secret" not in json.dumps(body) + str(headers)
  running.rows.fail = None
  assert _post(running, {"prompt": "a"})[0] == 200


def test_a_stream_that_fails_ends_with_an_error_and_done(running):
  running.rows.fail = RuntimeError("/secret/path")
  with (openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=0) as client,
        pytest.raises(openai.APIError, match="the server failed")):
    list(client.chat.completions.create(
        model="unilip", stream=True, messages=[{"role": "user", "content": "a"}]))


def test_too_large_bodies_are_refused_before_they_are_held(running):
  assert _post(running, {"prompt": "x" * 2**17})[0] == 413
  with socket.create_connection(("127.0.0.1", running.port), timeout=10) as chunked:
    chunked.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
                    b"Content-Type: application/json\r\n\r\n")
    for _ in range(3):
      chunked.sendall(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
    assert chunked.recv(100).startswith(b"HTTP/1.1 413")
  running.wait(lambda: running.served.bodies.open_bytes == 0)


_HEAD = (b"POST /v1/images/generations HTTP/1.1\r\nContent-Type: application/json\r\nHost: a\r\n"
         b"Content-Length: 9\r\n\r\n")


@pytest.mark.parametrize(
    "sent", [b"POST /v1/images", b"", _HEAD + b"{"], ids=["half a header", "nothing", "half a body"])
def test_slow_requests_are_ended(running, sent):
  with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
    connection.sendall(sent)
    answer = connection.recv(1000)
  assert answer.startswith(b"HTTP/1.1 408") if sent.endswith(b"{") else answer == b""


def test_a_request_beyond_its_time_is_ended():
  with fakes.running(limits=options.Limits(seconds=0.3)) as running:
    running.rows.gate.clear()
    status, headers, body = _post(running, {"prompt": "a"})
    assert (status, body["error"]["code"]) == (504, "timeout")
    assert headers["x-should-retry"] == "false"  # clients would make a slow image three times


def test_hostile_requests_are_answered_with_4xx():
  with fakes.running(limits=hostile_server.LIMITS) as running:
    result = hostile.campaign(running.port, 75)
  assert result["failures"] == []
  statuses = {s for counts in result["statuses"].values() for s in counts}
  assert statuses <= {"0", "200", "400", "404", "405", "408", "413", "415"}


def test_a_stop_finishes_what_was_accepted_and_refuses_the_rest():
  with fakes.running() as running:
    held = _held(running)
    waiting = _opened(running, {"prompt": "b"})
    running.wait(lambda: running.served.scheduler.waiting() == 1)
    running.server.handle_exit(15, None)
    status, headers, body = _post(running, {"prompt": "c"})
    assert (status, body["error"]["code"]) == (503, "stopping")
    assert "retry-after" in headers
    with pytest.raises(urllib.error.HTTPError, match="503"):
      urllib.request.urlopen(f"{running.url}/health", timeout=10)
    running.rows.gate.set()
    assert held.getresponse().status == 200
    assert waiting.getresponse().status == 200
    running.wait(lambda: not running.served.scheduler.alive)


def test_a_stop_ends_what_does_not_finish_in_time():
  with fakes.running(grace=0.2) as running:
    held = _held(running, {"messages": [{"role": "user", "content": "a" * 400}]}, "/v1/chat/completions")
    running.server.handle_exit(15, None)
    time.sleep(0.4)
    running.rows.gate.set()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      assert pool.submit(held.getresponse).result(10).status in (200, 503)
    running.wait(lambda: not running.served.scheduler.alive)


def test_a_stop_leaves_no_thread():
  before = set(threading.enumerate())
  with fakes.running() as running:
    assert _post(running, {"prompt": "a"})[0] == 200
  left = {t.name for t in set(threading.enumerate()) - before}
  assert not left & {"server", "device"}
