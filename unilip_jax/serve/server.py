"""Runs uvicorn: bounded connections, slow headers cut off, a stop that finishes what was accepted."""

import asyncio
import logging as std_logging
import time
from typing import Any

from absl import logging
from starlette import applications
import uvicorn
from uvicorn.protocols.http import h11_impl

from unilip_jax.serve import service

_HEADER_BYTES = 2**15
_KEEP_ALIVE = 30  # seconds between two requests of a connection
_QUIET = ("uvicorn.error", "python_multipart")
_LAST_SECONDS = 5  # for connections that are still open when all requests are answered


class Server(uvicorn.Server):
  """Serves an application until SIGTERM or SIGINT; a second signal stops at once."""

  def __init__(
      self, app: applications.Starlette, served: service.Service, *, host: str, port: int,
      grace: float = 60.0, page: bool = False):
    """Opens nothing yet.

    Args:
      app: of app.make_app.
      served: its service.
      host: address to listen on.
      port: 0 chooses a free one.
      grace: seconds that accepted requests get to finish after a signal.
      page: whether the application has the page, for the log.
    """
    self._served, self._grace, self._stop_at = served, grace, 0.0
    self._routes = "the API at /v1" + (", the page at /ui" if page else "")
    limits = served.limits
    for name in _QUIET:  # a line for each malformed request would let clients fill the disk
      std_logging.getLogger(name).setLevel(std_logging.ERROR)
    super().__init__(uvicorn.Config(
        app, host=host, port=port, http=_protocol(limits.read_seconds), ws="none", loop="asyncio",
        log_config=None, access_log=False, server_header=False, limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=_HEADER_BYTES, timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_LAST_SECONDS))

  def handle_exit(self, sig: int, frame: Any) -> None:
    """Requests a stop; called by a signal, or by a test with zeros."""
    if self._served.stopping:
      self.force_exit = self.should_exit = True
      return
    self._stop_at = time.monotonic() + self._grace
    self._served.stopping = True

  async def on_tick(self, counter: int) -> bool:
    """Ends the loop when a stop was requested and every accepted request is answered."""
    if self._served.stopping:
      finished = self._served.scheduler.idle and not self._served.open_requests
      if finished or time.monotonic() > self._stop_at:
        logging.info("stopping: %s", "all requests are answered" if finished else "the time is over")
        return True
    return await super().on_tick(counter)

  async def startup(self, sockets: Any = None) -> None:
    """Listens, and logs the address."""
    await super().startup(sockets)
    if self.started:
      logging.info("serving %s on http://%s:%d (%s)", ", ".join(self._served.names()), self.config.host,
                   self.port, self._routes)

  async def shutdown(self, sockets: Any = None) -> None:
    """Fails what is left with 503, then closes connections."""
    await asyncio.to_thread(self._served.scheduler.close)
    await super().shutdown(sockets)

  @property
  def port(self) -> int:
    """Port that the server listens on, after it has started."""
    return self.servers[0].sockets[0].getsockname()[1]


def _protocol(seconds: float) -> type[h11_impl.H11Protocol]:
  """Makes uvicorn's protocol with a time limit for the header of a request."""

  class Protocol(h11_impl.H11Protocol):
    """Closes connections whose header does not arrive in time; uvicorn alone would wait for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
      super().connection_made(transport)
      self._start()

    def data_received(self, data: bytes) -> None:
      super().data_received(data)
      if not self._waits():
        self._cancel()
      elif self._timer is None:
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
      self._cancel()
      super().connection_lost(exc)

    def _waits(self) -> bool:
      """Returns whether no request runs."""
      return self.cycle is None or self.cycle.response_complete

    def _start(self) -> None:
      self._timer = self.loop.call_later(seconds, self._close)

    def _cancel(self) -> None:
      if self._timer is not None:
        self._timer.cancel()
        self._timer = None

    def _close(self) -> None:
      self._timer = None
      if self._waits():
        self.transport.close()

  return Protocol
