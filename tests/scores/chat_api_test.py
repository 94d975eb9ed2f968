"""The client repeats what may pass, stops at what may not, never hangs and never shows the key."""

import email.utils
import threading
import time

import pytest

from tests.scores import judge_server
from unilip_jax.scores import chat_api

_KEY = "sk-very-secret-0123"
_BODY = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}


def _endpoint(url, waits=None, key=_KEY, **limits):
  sleep = (lambda s: None) if waits is None else waits.append
  return chat_api.Endpoint(url, chat_api.Limits(**{"timeout": 5.0, "retries": 3, **limits}),
                           environment={"OPENAI_API_KEY": key}, sleep=sleep)


def _serve(*answers):
  """A server that gives these answers in turn, then the last one."""
  return judge_server.Server(lambda body, number: answers[min(number, len(answers)) - 1])


def test_a_completion_is_read_and_the_key_goes_into_the_header_alone():
  with _serve(judge_server.Answer("7")) as server:
    reply = _endpoint(server.url).complete(_BODY, "k1")
  assert (reply.text, reply.model, reply.tries) == ("7", "judge-2025-01-01", 1)
  assert reply.usage == {"prompt_tokens": 100, "completion_tokens": 10}
  path, headers, body = server.seen[0]
  assert (path, headers["Authorization"], headers["Idempotency-Key"]) == (
      "/v1/chat/completions", f"Bearer {_KEY}", "k1")
  assert _KEY not in str(body)


def test_the_judges_own_key_comes_first_and_without_one_no_header_is_sent():
  both = {"OPENAI_API_KEY": "other", "UNILIP_JUDGE_KEY": _KEY}
  with _serve(judge_server.Answer("7")) as server:
    chat_api.Endpoint(server.url, environment=both).complete(_BODY, "k")
    chat_api.Endpoint(server.url, environment={}).complete(_BODY, "k2")
  assert [h.get("Authorization") for _, h, _ in server.seen] == [f"Bearer {_KEY}", None]


@pytest.mark.parametrize("bad", [
    judge_server.Answer("down", status=500), judge_server.Answer("busy", status=429),
    judge_server.Answer(raw=b"<html>"), judge_server.Answer(drop=True),
    judge_server.Answer(raw=b'{"choices": []}'), judge_server.Answer(raw=b"[" * 9999)])
def test_failures_that_may_pass_are_repeated_with_growing_waits_and_the_same_key(bad):
  waits = []
  with _serve(bad, bad, judge_server.Answer("7")) as server:
    endpoint = _endpoint(server.url, waits)
    assert endpoint.complete(_BODY, "k1").tries == 3
  assert {h["Idempotency-Key"] for _, h, _ in server.seen} == {"k1"}
  assert len(waits) == 2
  assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0
  assert sum(endpoint.retries.values()) == 2


def test_the_time_that_the_endpoint_states_is_waited_by_all_threads():
  late = email.utils.formatdate(time.time() + 30, usegmt=True)
  for headers, low, high in (({"Retry-After": "7"}, 6, 7), ({"retry-after-ms": "2500"}, 2, 2.5),
                             ({"Retry-After": late}, 27, 30), ({"Retry-After": "9999"}, 119, 120)):
    with _serve(judge_server.Answer("busy", status=429, headers=headers),
                judge_server.Answer("7")) as server:
      waits = []
      endpoint = _endpoint(server.url)
      endpoint._sleep = lambda s, e=endpoint, w=waits: (w.append(s), setattr(e, "_next_start", 0.0))
      assert endpoint.complete(_BODY, "k").text == "7"
    assert low <= waits[0] <= high


@pytest.mark.parametrize(("answer", "message"), [
    (judge_server.Answer("no", status=401), r"refuses the key of \$UNILIP_JUDGE_KEY"),
    (judge_server.Answer("no such model", status=404), "--base_url and --model"),
    (judge_server.Answer("moved", status=302), "--base_url and --model"),
    (judge_server.Answer("pay", status=429, code="insufficient_quota"), "no credit")])
def test_what_every_request_would_get_stops_at_once(answer, message):
  with _serve(answer) as server, pytest.raises(chat_api.EndpointError, match=message):
    _endpoint(server.url).complete(_BODY, "k")
  assert len(server.seen) == 1


def test_a_filtered_request_is_refused_and_another_rejected_one_named():
  with (_serve(judge_server.Answer("filtered", status=400, code="content_filter")) as server,
        pytest.raises(chat_api.Refused, match="filtered")):
    _endpoint(server.url).complete(_BODY, "k")
  with (_serve(judge_server.Answer("image too large", status=413)) as server,
        pytest.raises(chat_api.CallError, match="image too large")):
    _endpoint(server.url).complete(_BODY, "k")
  assert len(server.seen) == 1


def test_slow_answers_end_at_the_deadline():
  for slow in (judge_server.Answer("7", delay=3.0), judge_server.Answer("7", drip=0.1)):
    with _serve(slow) as server:
      begin = time.monotonic()
      with pytest.raises(chat_api.CallError, match="TimeoutError"):
        _endpoint(server.url, retries=0, timeout=0.3).complete(_BODY, "k")
      assert time.monotonic() - begin < 2.0


def test_an_address_where_nobody_answers_ends_too():
  with pytest.raises(chat_api.CallError, match="ConnectionRefusedError"):
    _endpoint("http://127.0.0.1:9/v1", retries=1).complete(_BODY, "k")


def test_the_key_is_in_no_message_and_no_answer():
  echo = f"your key {_KEY} is"
  for answer in (judge_server.Answer(echo, status=401), judge_server.Answer(echo, status=418),
                 judge_server.Answer(echo, status=500),
                 judge_server.Answer(echo, status=400, code="content_filter")):
    with _serve(answer) as server:
      with pytest.raises(Exception, match=r"your key \[key\] is") as error:
        _endpoint(server.url, retries=0).complete(_BODY, "k")
      while error is not None:
        assert _KEY not in str(error) + repr(error)
        error = getattr(error, "__cause__", None)
  with _serve(judge_server.Answer(echo)) as server:
    endpoint = _endpoint(server.url)
    assert _KEY not in repr(endpoint.complete(_BODY, "k")) + repr(endpoint)


def test_a_part_of_a_key_that_a_message_repeats_is_masked():
  with (_serve(judge_server.Answer("Incorrect API key provided: sk-ve****0123.", status=401)) as server,
        pytest.raises(chat_api.EndpointError) as error):
    _endpoint(server.url).complete(_BODY, "k")
  assert "sk-" not in str(error.value)
  assert "Incorrect API key provided: [key]" in str(error.value)


@pytest.mark.parametrize(("url", "message"), [
    ("api.openai.com/v1", "http"), ("https://me:secret@host/v1", "must not hold a user"),
    ("https://host/v1?key=secret", "must not hold a user"),
    ("http://example.com/v1", "unencrypted")])
def test_unsafe_addresses_are_refused_without_repeating_secrets(url, message):
  with pytest.raises(ValueError, match=message) as error:
    _endpoint(url)
  assert "secret" not in str(error.value)


def test_the_environments_proxy_is_used(monkeypatch):
  with _serve(judge_server.Answer("7")) as server:
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "")
    assert _endpoint("http://judge.internal:81/v1").complete(_BODY, "k").text == "7"
  assert server.seen[0][0] == "http://judge.internal:81/v1/chat/completions"


def test_requests_keep_to_the_rate():
  with _serve(judge_server.Answer("7")) as server:
    endpoint = chat_api.Endpoint(
        server.url, chat_api.Limits(requests_per_minute=1200), environment={})
    begin = time.monotonic()
    threads = [threading.Thread(target=endpoint.complete, args=(_BODY, str(i))) for i in range(5)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert time.monotonic() - begin >= 4 * 60 / 1200


def test_a_stopped_endpoint_starts_no_request():
  with _serve(judge_server.Answer("7")) as server:
    endpoint = _endpoint(server.url)
    endpoint.stop()
    with pytest.raises(chat_api.Cancelled):
      endpoint.complete(_BODY, "k")
  assert not server.seen
