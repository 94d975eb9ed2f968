"""Reads the bodies of requests: bounded in bytes, of each and of all at once, and in time."""

import asyncio
from collections.abc import AsyncIterator
import contextlib
import json
from typing import Any

import anyio.to_thread
from starlette import datastructures, formparsers, requests

from unilip_jax.serve import api_errors, options

_MAX_FIELDS = 64  # of a form
_MAX_FILES = 17
_FIELD_BYTES = 2**17  # of a form's text: 32 000 characters
_PARSERS = 2  # bodies that are parsed at once


class Reader:
  """Reads bodies.

  Attributes:
    open_bytes: of the bodies that are held now.
  """

  def __init__(self, limits: options.Limits):
    """Reads nothing yet."""
    self._limits, self.open_bytes = limits, 0
    self._threads = anyio.CapacityLimiter(_PARSERS)

  @contextlib.asynccontextmanager
  async def json(self, request: requests.Request) -> AsyncIterator[dict[str, Any]]:
    """Reads an object of JSON; its bytes count as held until the block ends.

    Raises:
      ApiError: 415 for another content type, 413 for too many bytes, 408 for too slow ones, 429 if other
        bodies hold the memory, 400 for malformed JSON.
    """
    _check_type(request, "application/json")
    async with self._held() as held:
      body = bytearray()
      async for chunk in self._chunks(request, held):
        body += chunk
      try:
        value = await self.in_thread(json.loads, bytes(body))
      except (ValueError, RecursionError):
        raise api_errors.ApiError(400, "malformed_json", "the body is not valid JSON") from None
      if not isinstance(value, dict):
        raise api_errors.ApiError(400, "malformed_json", "the body must be a JSON object")
      del body
      yield value

  @contextlib.asynccontextmanager
  async def form(self, request: requests.Request) -> AsyncIterator[datastructures.FormData]:
    """Reads multipart/form-data, of which large files lie on disk; otherwise as `json`."""
    _check_type(request, "multipart/form-data")
    async with self._held() as held:
      parser = formparsers.MultiPartParser(
          request.headers, self._chunks(request, held), max_files=_MAX_FILES, max_fields=_MAX_FIELDS,
          max_part_size=_FIELD_BYTES)
      try:
        form = await parser.parse()
      except (formparsers.MultiPartException, ValueError, LookupError):
        # The parser's own texts are not sent to clients; damaged headers of a part raise the others.
        raise api_errors.ApiError(
            400, "malformed_form", f"the body is not valid multipart/form-data with at most {_MAX_FIELDS} "
            f"fields and {_MAX_FILES} files") from None
      try:
        yield form
      finally:
        await form.close()

  async def in_thread(self, function: Any, *arguments: Any) -> Any:
    """Runs a function of much work in a thread, few at once."""
    return await anyio.to_thread.run_sync(function, *arguments, limiter=self._threads)

  @contextlib.asynccontextmanager
  async def _held(self) -> AsyncIterator[list[int]]:
    held = [0]
    try:
      yield held
    finally:
      self.open_bytes -= held[0]

  async def _chunks(self, request: requests.Request, held: list[int]) -> AsyncIterator[bytes]:
    """Yields the body's parts; counts them in `held`."""
    most = self._limits.body_bytes
    too_large = api_errors.ApiError(413, "body_too_large", f"the body exceeds {most} bytes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > most:
      raise too_large
    deadline = asyncio.get_running_loop().time() + self._limits.read_seconds
    stream = request.stream()
    while True:
      try:
        async with asyncio.timeout_at(deadline):
          chunk = await anext(stream, None)
      except TimeoutError:
        raise api_errors.ApiError(
            408, "slow_body", f"the body did not arrive within {self._limits.read_seconds:g} s",
            headers={"connection": "close"}) from None
      if chunk is None:
        return
      held[0] += len(chunk)
      self.open_bytes += len(chunk)
      if held[0] > most:
        raise too_large
      if self.open_bytes > self._limits.open_bytes:
        raise api_errors.queue_full(5)
      yield chunk


def _check_type(request: requests.Request, expected: str) -> None:
  given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if given != expected:
    raise api_errors.ApiError(415, "unsupported_content_type", f"send content-type: {expected}")
