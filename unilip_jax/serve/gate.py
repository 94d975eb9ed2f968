"""What every request passes: its id, the key, the stop, errors as JSON, metrics and the log."""

from collections.abc import Mapping
import hashlib
import hmac
import json
import secrets
import time
import traceback
from typing import Any

from absl import logging
from starlette import datastructures, requests, responses

from unilip_jax.serve import api_errors

_API = "/v1/"
_ROUTES = ("/v1/models", "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions", "/health",
           "/metrics", "/ui")


class Gate:
  """ASGI middleware around the routes."""

  def __init__(self, app: Any, served: Any, key: str = ""):
    """Wraps an application.

    Args:
      app: of ASGI.
      served: the service.Service.
      key: that requests of the API must bring; "" for none.
    """
    self._app, self._served, self._digest = app, served, _digest(key) if key else b""

  async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers a request; other events pass."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    path, begin, status = scope["path"], time.monotonic(), [0]
    request_id = f"req_{secrets.token_hex(12)}"

    async def send_with_id(message):
      if message["type"] == "http.response.start":
        status[0] = message["status"]
        datastructures.MutableHeaders(scope=message)["x-request-id"] = request_id
      await send(message)

    api = path.startswith(_API)
    self._served.open_requests += api
    try:
      if api:
        self._check(scope)
      await self._app(scope, receive, send_with_id)
    except requests.ClientDisconnect:
      status[0] = status[0] or 499
      self._served.metrics.cancelled.inc()
    except api_errors.ApiError as error:
      if status[0]:
        raise
      await error_response(error)(scope, receive, send_with_id)
      _release(error)
    except Exception:
      logging.exception("request %s failed", request_id)
      if not status[0]:
        await error_response(api_errors.internal())(scope, receive, send_with_id)
    finally:
      self._served.open_requests -= api
      self._note(scope, status[0], time.monotonic() - begin, request_id)

  def _check(self, scope: Mapping[str, Any]) -> None:
    """Refuses requests without the key, and all when the server stops."""
    if self._digest:
      given = datastructures.Headers(scope=scope).get("authorization", "")
      kind, _, key = given.partition(" ")
      right = hmac.compare_digest(_digest(key.strip()), self._digest)
      if kind.lower() != "bearer" or not right:
        raise api_errors.ApiError(
            401, "invalid_api_key", "send the server's key as the header `Authorization: Bearer KEY`",
            headers={"www-authenticate": "Bearer"})
    if self._served.stopping:
      raise api_errors.stopping()

  def _note(self, scope: Mapping[str, Any], status: int, seconds: float, request_id: str) -> None:
    path = scope["path"]
    route = next((name for name in _ROUTES if path == name or path.startswith(f"{name}/")), "other")
    self._served.metrics.requests.labels(route, status).inc()
    self._served.metrics.seconds.labels(route).observe(seconds)
    if route not in ("/health", "/metrics", "/ui"):
      logging.info("%s %s %d %.3f s %s", scope["method"], route, status, seconds, request_id)


def _release(error: BaseException | None) -> None:
  """Frees the locals of the frames that an error went through, of which some hold the body.

  Frames and errors refer to each other; without this they live until the garbage collector's last
  generation, which is rare in a process as large as JAX's.
  """
  while error is not None:
    traceback.clear_frames(error.__traceback__)
    following = error.__cause__ or error.__context__
    error.__traceback__ = error.__cause__ = error.__context__ = None
    error = following


def error_response(
    error: api_errors.ApiError, headers: Mapping[str, str] | None = None) -> responses.Response:
  """Makes the response of an error."""
  return responses.Response(json.dumps(error.body()), error.status, media_type="application/json",
                            headers={**error.headers, **(headers or {})})


def _digest(key: str) -> bytes:
  """Makes texts of any length and alphabet comparable in constant time."""
  return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
