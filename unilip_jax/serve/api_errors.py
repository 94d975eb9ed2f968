"""Errors in the shape of OpenAI's API; their messages are the only ones that clients get."""

from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
  """An answer other than 200.

  Attributes:
    status: of HTTP.
    code: stable name of the error, for programs.
    message: for people: what is wrong and the remedy.
    param: name of the field, or None.
    headers: further ones of the response.
  """

  def __init__(
      self, status: int, code: str, message: str, param: str | None = None,
      headers: Mapping[str, str] | None = None):
    super().__init__(message)
    self.status, self.code, self.message, self.param = status, code, message, param
    self.headers = dict(headers or {})

  def body(self) -> dict[str, Any]:
    """Returns the JSON body."""
    kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
    return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def queue_full(seconds: int) -> ApiError:
  """Makes the error of a full queue; clients repeat the request after `seconds`."""
  return ApiError(429, "queue_full", "the queue is full; repeat the request later",
                  headers={"retry-after": str(seconds)})


def stopping() -> ApiError:
  """Makes the error of a server that finishes its last requests."""
  return ApiError(503, "stopping", "the server is stopping and takes no further requests",
                  headers={"retry-after": "30", "connection": "close"})


def timeout(seconds: float) -> ApiError:
  """Makes the error of a request that took too long; clients must not repeat it at once."""
  return ApiError(504, "timeout", f"no answer within {seconds:g} s: ask for less, or later",
                  headers={"x-should-retry": "false"})


def internal() -> ApiError:
  """Makes the error of a bug; the log has the reason under the request's id."""
  return ApiError(
      500, "internal_error", "the server failed; its log has the reason under this request's id (header "
      "x-request-id)", headers={"x-should-retry": "false"})


def unsupported(param: str, why: str) -> ApiError:
  """Makes the error of a feature that this server lacks."""
  return ApiError(400, "unsupported_parameter", f"{param}: {why}", param)
