"""Sends chat completions to an OpenAI-compatible endpoint: keys, timeouts, retries and rate limits.

The key comes from $UNILIP_JUDGE_KEY or $OPENAI_API_KEY, and is removed from every text that this file
returns or raises. A call has a deadline: no socket operation outlives it.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import email.utils
import http.client
import ipaddress
import json
import os
import random
import re
import socket
import threading
import time
from typing import Any
import urllib.parse
import urllib.request

KEY_VARIABLES = ("UNILIP_JUDGE_KEY", "OPENAI_API_KEY")
_RETRY_STATUS = (408, 409, 425, 429)  # and 5xx
_FATAL_STATUS = (401, 402, 403, 404, 405)  # the same for every request
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_FILTERED = ("content_filter", "content_policy_violation", "moderation_blocked", "data_inspection_failed")
_MASKED = re.compile(r"\bsk-[\w*.-]{4,}")  # a key of which an endpoint's message repeats a part
_LONGEST_BODY = 2**24  # bytes of an answer
_MESSAGE_CHARS = 300  # of an endpoint's error that is repeated in messages


class EndpointError(ValueError):
  """An answer that every further request would get too: a wrong key, URL or model, or no credit."""


class CallError(Exception):
  """A call that got no answer after all retries, or whose request the endpoint rejects."""


class Refused(Exception):
  """A request that the endpoint's content filter refuses."""


class Cancelled(Exception):
  """A call that `Endpoint.stop` ended before it was sent."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """Holds timeouts, retries and rates.

  Attributes:
    connect_timeout: seconds to connect.
    timeout: seconds of one try, from connecting to the last byte of the answer.
    retries: further tries after a failure that may pass: a lost connection, a timeout, 429 or 5xx.
    first_wait: seconds before the first retry; doubled with each, unless the endpoint states a time.
    longest_wait: seconds of one wait at most.
    requests_per_minute: over all threads; 0 is without limit.
  """

  connect_timeout: float = 10.0
  timeout: float = 180.0
  retries: int = 6
  first_wait: float = 1.0
  longest_wait: float = 120.0
  requests_per_minute: float = 0.0


@dataclasses.dataclass(frozen=True)
class Reply:
  """Holds a chat completion.

  Attributes:
    model: id as the endpoint returned it.
    text: of the first choice; "" if there is none.
    refusal: the judge's own refusal field, or "".
    finish_reason: of the first choice.
    usage: {"prompt_tokens", "completion_tokens"}; {} if the endpoint does not count.
    tries: HTTP requests that it took.
    seconds: of the last one.
  """

  model: str
  text: str
  refusal: str
  finish_reason: str
  usage: Mapping[str, int]
  tries: int
  seconds: float


class Endpoint:
  """Sends requests from several threads.

  Attributes:
    kind: "openai", "azure", "local" or "other"; results name this and not the address.
    retries: {reason: number} of the tries that were repeated, over all calls.
  """

  def __init__(
      self, base_url: str, limits: Limits | None = None, *, environment: Mapping[str, str] = os.environ,
      sleep: Callable[[float], Any] | None = None):
    """Checks the address and reads the key; sends nothing yet.

    Args:
      base_url: for example "https://api.openai.com/v1"; "/chat/completions" is added.
      limits: see Limits.
      environment: of the process; the key is read from it.
      sleep: waits this many seconds; None ends the wait when `stop` is called.

    Raises:
      ValueError: for a malformed address, one that holds a secret, or a key over unencrypted http to the
        internet.
    """
    self.limits = limits or Limits()
    self._key = next((environment[name] for name in KEY_VARIABLES if environment.get(name)), "")
    url = urllib.parse.urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname or url.port == 0:  # or no number: ValueError
      raise ValueError("the judge's address must be http(s)://HOST[:PORT]/PATH, e.g. "
                       "https://api.openai.com/v1")
    if url.username or url.password or url.query or url.fragment:
      raise ValueError(f"the judge's address must not hold a user, password or query: give the key in "
                       f"${KEY_VARIABLES[0]}")
    if any(c in self._key for c in "\r\n"):
      raise ValueError(f"${' or $'.join(KEY_VARIABLES)} holds a line break; set it again")
    if self._key and url.scheme == "http" and not _is_private(url.hostname):
      raise ValueError(f"http://{url.hostname} would send the key unencrypted; use https, or unset "
                       f"{' and '.join(KEY_VARIABLES)}")
    self._url, self._path = url, url.path.rstrip("/") + "/chat/completions"
    self.kind = _kind(url.hostname)
    self.retries: dict[str, int] = {}
    self._stopped = threading.Event()
    self._sleep = sleep or self._stopped.wait
    self._lock = threading.Lock()
    self._next_start = 0.0  # time.monotonic before which no request starts

  def stop(self) -> None:
    """Lets calls that wait raise Cancelled; those whose request is sent still return their answer."""
    self._stopped.set()

  def redact(self, text: str) -> str:
    """Removes the key from a text."""
    return text.replace(self._key, "[key]") if self._key else text

  def complete(self, body: Mapping[str, Any], idempotency_key: str) -> Reply:
    """Sends a chat completion.

    Args:
      body: JSON-ready.
      idempotency_key: the same for a repeated request, so that an endpoint that knows this header answers
        again without computing (and billing) again.

    Raises:
      EndpointError: see there.
      Refused: see there.
      CallError: see there.
      Cancelled: see there.
    """
    data = json.dumps(body).encode()
    problem = ""
    for attempt in range(self.limits.retries + 1):
      self._wait_for_turn()
      begin = time.monotonic()
      try:
        status, headers, text = self._post(data, idempotency_key)
        if status == 200:
          return self._reply(text, attempt + 1, time.monotonic() - begin)
        wait = _retry_after(headers)
        problem = self._problem(status, text)
      except (OSError, http.client.HTTPException, _BrokenReplyError) as error:
        wait, problem = None, self.redact(f"{type(error).__name__}: {error}")
      if attempt < self.limits.retries:
        self._count(problem.split(":")[0])
        self._pause(attempt, wait)
    raise CallError(f"no answer after {self.limits.retries + 1} tries; the last: {problem}")

  # ---- one try

  def _post(self, data: bytes, idempotency_key: str) -> tuple[int, Mapping[str, str], str]:
    deadline = time.monotonic() + self.limits.timeout
    connection, target = self._connection()
    guard = None
    try:
      connection.connect()
      left = max(0.001, deadline - time.monotonic())
      connection.sock.settimeout(left)
      # Socket timeouts bound single reads. This ends a try whose bytes come one by one.
      guard = threading.Timer(left, _shut_down, (connection.sock,))
      guard.daemon = True
      guard.start()
      headers = {"Content-Type": "application/json", "Accept": "application/json",
                 "Idempotency-Key": idempotency_key, "User-Agent": "unilip_jax"}
      if self._key:
        headers["Authorization"] = f"Bearer {self._key}"
        if self.kind == "azure":
          headers["api-key"] = self._key
      connection.request("POST", target, data, headers)
      response = connection.getresponse()
      content = response.read(_LONGEST_BODY + 1)
      if time.monotonic() >= deadline:  # the guard may have cut the answer
        raise TimeoutError(f"no complete answer within {self.limits.timeout:g} s")
      if len(content) > _LONGEST_BODY:
        raise _BrokenReplyError(f"an answer of more than {_LONGEST_BODY} bytes")
      headers = {name.lower(): value for name, value in response.headers.items()}
      return response.status, headers, content.decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
      if time.monotonic() >= deadline and not isinstance(error, TimeoutError):
        raise TimeoutError(f"no complete answer within {self.limits.timeout:g} s") from None
      raise
    finally:
      if guard is not None:
        guard.cancel()
      connection.close()

  def _connection(self) -> tuple[http.client.HTTPConnection, str]:
    """Returns (connection, request target), through the proxy that the environment states."""
    url, timeout = self._url, self.limits.connect_timeout
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    proxy = None if urllib.request.proxy_bypass(url.hostname) else urllib.request.getproxies().get(
        url.scheme)
    if not proxy:
      return kinds[url.scheme](url.hostname, url.port, timeout=timeout), self._path
    through = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = kinds[url.scheme](through.hostname, through.port or 80, timeout=timeout)
    if url.scheme == "https":
      connection.set_tunnel(url.hostname, url.port or 443)
      return connection, self._path
    return connection, f"http://{url.netloc}{self._path}"

  def _reply(self, text: str, tries: int, seconds: float) -> Reply:
    try:
      body = json.loads(text)
      choice = body["choices"][0]
      message = choice["message"]
      content = message.get("content")
      if isinstance(content, list):  # parts
        content = "".join(p.get("text", "") for p in content)
      usage = body.get("usage") or {}
      return Reply(
          model=self.redact(str(body.get("model") or "")), text=self.redact(content or ""),
          refusal=self.redact(str(message.get("refusal") or "")),
          finish_reason=str(choice.get("finish_reason") or ""),
          usage={name: int(usage[name]) for name in ("prompt_tokens", "completion_tokens")
                 if isinstance(usage.get(name), int)},
          tries=tries, seconds=round(seconds, 3))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
      raise _BrokenReplyError(f"not a chat completion: {text[:_MESSAGE_CHARS]!r}") from error

  def _problem(self, status: int, text: str) -> str:
    """Returns what is wrong with a try that may be repeated; raises for others."""
    code, message = _error_of(text)
    message = _MASKED.sub("[key]", self.redact(
        f"HTTP {status}: {code + ': ' if code else ''}{message[:_MESSAGE_CHARS]}"))
    if code in _FILTERED or "ResponsibleAIPolicyViolation" in text:
      raise Refused(message)
    if code in _NO_CREDIT:
      raise EndpointError(f"the judge's account has no credit ({message}); add credit and run it again")
    if status in (401, 403):
      names = " or $".join(KEY_VARIABLES)
      raise EndpointError(f"the judge refuses the key of ${names} ({message})" if self._key else
                          f"the judge wants a key ({message}); set ${names}")
    if status in _FATAL_STATUS or 300 <= status < 400:
      raise EndpointError(f"the judge's address or model is wrong ({message}); check --base_url and "
                          "--model")
    if status >= 500 or status in _RETRY_STATUS:
      return message
    raise CallError(f"the judge rejects the request ({message})")

  # ---- waiting

  def _wait_for_turn(self) -> None:
    """Waits until the rate limit and the waits that the endpoint asked for allow another request."""
    rate = self.limits.requests_per_minute
    while not self._stopped.is_set():
      with self._lock:
        now = time.monotonic()
        if now >= self._next_start:
          self._next_start = now + (60.0 / rate if rate else 0.0)
          return
        wait = self._next_start - now
      self._sleep(wait)
    raise Cancelled

  def _pause(self, attempt: int, stated: float | None) -> None:
    """Waits before a retry; a time that the endpoint states holds for all threads."""
    if stated is not None:
      seconds = min(stated, self.limits.longest_wait)
      with self._lock:
        self._next_start = max(self._next_start, time.monotonic() + seconds)
    else:
      seconds = min(self.limits.first_wait * 2**attempt, self.limits.longest_wait)
      seconds *= random.uniform(0.5, 1.0)  # threads that failed together come back apart
      self._sleep(seconds)

  def _count(self, reason: str) -> None:
    with self._lock:
      self.retries[reason] = self.retries.get(reason, 0) + 1


class _BrokenReplyError(Exception):
  """A reply with status 200 that is not a chat completion."""


def _shut_down(sock: socket.socket) -> None:
  """Ends a socket that another thread reads."""
  with contextlib.suppress(OSError):  # it has ended already
    sock.shutdown(socket.SHUT_RDWR)


def _error_of(text: str) -> tuple[str, str]:
  """Reads (code, message) of an error's body."""
  try:
    error = json.loads(text)["error"]
  except (ValueError, LookupError, TypeError, RecursionError):
    return "", " ".join(text.split())
  if not isinstance(error, dict):
    return "", str(error)
  return str(error.get("code") or error.get("type") or ""), str(error.get("message") or "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
  """Reads the seconds that an endpoint asks to wait; None if it does not."""
  try:
    if "retry-after-ms" in headers:
      return max(0.0, float(headers["retry-after-ms"]) / 1000)
    if "retry-after" not in headers:
      return None
    value = headers["retry-after"]
    if value.strip().replace(".", "", 1).isdigit():
      return float(value)
    return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
  except ValueError:
    return None


def _is_private(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_private
  except ValueError:
    return "." not in host or host.endswith((".local", ".internal", ".localhost"))


def _kind(host: str) -> str:
  if host == "api.openai.com":
    return "openai"
  if host.endswith(".azure.com"):
    return "azure"
  return "local" if _is_private(host) else "other"
