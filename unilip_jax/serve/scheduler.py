"""Runs rows on the device: one worker thread, a bounded queue, batches of rows of one group.

A batch is a generator that yields after each call of the device. Up to two batches take turns, so that an
image does not wait for the end of a long answer.
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
import threading
import time
from typing import Any

from absl import logging

from unilip_jax.serve import api_errors

_ACTIVE = 2  # batches that take turns
_LONGEST_WAIT = 120  # seconds that Retry-After states at most
_JOIN_SECONDS = 30  # for a call of the device, or a compilation, that cannot be interrupted


class Job:
  """One row: what to run, and its latest result. Made and awaited on the event loop."""

  def __init__(self, group: Hashable, row: Any):
    """Keeps the row; `Scheduler.submit` queues it.

    Args:
      group: rows of equal groups share batches.
      row: for the batch's function.
    """
    self.group, self.row, self.cancelled = group, row, False
    self.begin = time.monotonic()
    self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
    self._latest: tuple[Any, bool] | None = None
    self._error: BaseException | None = None

  def publish(self, value: Any, complete: bool = True) -> None:
    """Replaces the result; called by the worker."""
    self._latest = (value, complete)
    self._wake()

  def fail(self, error: BaseException) -> None:
    """Ends the job with an error; called by the worker."""
    self._error = error
    self._wake()

  def _wake(self) -> None:
    if not self._loop.is_closed():  # a test's loop may end before the worker
      self._loop.call_soon_threadsafe(self._changed.set)

  async def updates(self) -> AsyncIterator[tuple[Any, bool]]:
    """Yields (latest value, whether it is complete) until it is.

    Raises:
      ApiError: if the batch failed.
    """
    while True:
      await self._changed.wait()
      self._changed.clear()
      if self._error is not None:
        raise self._error
      value, complete = self._latest
      yield value, complete
      if complete:
        return

  async def result(self) -> Any:
    """Returns the complete value."""
    async for value, complete in self.updates():
      if complete:
        return value
    raise api_errors.internal()


class Scheduler:
  """Queues jobs and runs them in batches on a thread of its own."""

  def __init__(
      self, run: Callable[[Hashable, Sequence[Job]], Iterator[None]], largest: Callable[[Hashable], int], *,
      limit: int):
    """Starts the thread.

    Args:
      run: makes the generator of a batch; it publishes to its jobs.
      largest: rows of a batch of a group, at most.
      limit: jobs that wait, at most.
    """
    self._run, self._largest, self._limit = run, largest, limit
    self._waiting: collections.deque[Job] = collections.deque()
    self._active: collections.deque[tuple[Iterator[None], Sequence[Job]]] = collections.deque()
    self._wake = threading.Condition()
    self._seconds, self._closed = 1.0, False  # of a batch, moving average
    self._thread = threading.Thread(target=self._work, name="device", daemon=True)
    self._thread.start()

  @property
  def alive(self) -> bool:
    """Whether the worker runs."""
    return self._thread.is_alive()

  @property
  def idle(self) -> bool:
    """Whether nothing waits or runs."""
    with self._wake:
      return not self._waiting and not self._active

  def waiting(self) -> int:
    """Returns the number of jobs that wait."""
    return len(self._waiting)

  def submit(self, jobs: Sequence[Job]) -> None:
    """Queues all jobs or none.

    Raises:
      ApiError: 429 if the queue is full, 503 after `close`.
    """
    with self._wake:
      if self._closed or not self.alive:
        raise api_errors.stopping()
      if len(self._waiting) + len(jobs) > self._limit:
        raise api_errors.queue_full(self.expected_wait())
      self._waiting.extend(jobs)
      self._wake.notify()

  def cancel(self, jobs: Sequence[Job]) -> None:
    """Frees the places of jobs that nobody waits for; running batches skip them."""
    with self._wake:
      for job in jobs:
        job.cancelled = True
      gone = set(map(id, jobs))
      kept = [job for job in self._waiting if id(job) not in gone]
      self._waiting.clear()
      self._waiting.extend(kept)

  def expected_wait(self) -> int:
    """Returns the seconds until the queue has room, estimated from recent batches."""
    batches = 1 + len(self._active) + len(self._waiting) / 8
    return int(min(max(1.0, batches * self._seconds), _LONGEST_WAIT))

  def close(self) -> None:
    """Ends the worker; jobs that wait or run fail with 503."""
    with self._wake:
      self._closed = True
      for job in self._waiting:
        job.fail(api_errors.stopping())
      self._waiting.clear()
      self._wake.notify()
    self._thread.join(_JOIN_SECONDS)
    if self.alive:
      logging.warning("the device's thread did not end within %d s", _JOIN_SECONDS)

  def _work(self) -> None:
    while True:
      with self._wake:
        while not self._waiting and not self._active and not self._closed:
          self._wake.wait()
        if self._closed:
          break
        jobs = self._take() if self._waiting and len(self._active) < _ACTIVE else []
        if jobs:
          self._active.append((self._run(jobs[0].group, jobs), jobs))
      self._advance()
    for batch, jobs in self._active:
      batch.close()
      for job in jobs:
        job.fail(api_errors.stopping())

  def _take(self) -> list[Job]:
    """Takes the oldest job and those of its group, at most a batch."""
    group = self._waiting[0].group
    taken = [job for job in self._waiting if job.group == group][:self._largest(group)]
    ids = set(map(id, taken))
    kept = [job for job in self._waiting if id(job) not in ids]
    self._waiting.clear()
    self._waiting.extend(kept)
    return taken

  def _advance(self) -> None:
    """Runs one part of the batch whose turn it is."""
    batch, jobs = self._active[0]
    begin, finished = time.monotonic(), False
    try:
      finished = next(batch, self) is self or all(job.cancelled for job in jobs)
    except BaseException as error:
      logging.exception("a batch of %s failed", jobs[0].group)
      finished = True
      for job in jobs:
        job.fail(api_errors.internal())
      if not isinstance(error, Exception):
        raise
    finally:
      self._seconds += 0.2 * (time.monotonic() - begin - self._seconds)
      with self._wake:
        self._active.popleft()
        if finished:
          batch.close()
        else:
          self._active.append((batch, jobs))
