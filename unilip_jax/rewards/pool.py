"""Runs rewards in processes of their own, so that none can stall or silently falsify a run.

A process that does not answer in time is killed and started again for the next call. What fails (an
exception, a dead process, a late answer, a value that is not finite) is NaN in the result, with a message.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import multiprocessing
from multiprocessing import connection
import os
import pickle
import tempfile
import time
from typing import Any

import numpy as np

from unilip_jax.common import child
from unilip_jax.rewards import base

# One thread a process: the threads of several linear algebra libraries wait for each other, which made the
# verifier of Shapes 60 times slower on two busy cores.
_ENVIRONMENT = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclasses.dataclass(frozen=True)
class Scores:
  """Holds the result of a call.

  Attributes:
    terms: {label: float32[B]}, NaN where the reward failed.
    failures: one message for each failure.
  """

  terms: dict[str, np.ndarray]
  failures: list[str]


class Pool:
  """Scores images by several rewards, in `workers` processes for each."""

  def __init__(self, terms: Sequence[base.Term], *, workers: int, timeout: float):
    """Starts the processes; they import their reward while the caller goes on.

    Args:
      terms: at least one.
      workers: processes of each term.
      timeout: seconds that one call may take, the import included.
    """
    self._timeout = timeout
    self._workers = {term.label: [_Worker(term) for _ in range(workers)] for term in terms}

  def score(self, images: np.ndarray, records: Sequence[base.Record]) -> Scores:
    """Scores uint8[B, R, R, 3] images.

    Returns:
      every term's scores; this takes at most the timeout.
    """
    deadline = time.monotonic() + self._timeout
    result = Scores({label: np.full(len(records), np.nan, np.float32) for label in self._workers}, [])
    with tempfile.TemporaryDirectory(prefix="rewards_") as folder:
      jobs = []
      for label, workers in self._workers.items():
        edges = np.linspace(0, len(records), len(workers) + 1).astype(int)
        for worker, first, last in zip(workers, edges[:-1], edges[1:]):
          if first < last:
            path = os.path.join(folder, f"{first}-{last}")
            if not os.path.exists(path):  # the same part serves all terms
              with open(path, "wb") as f:
                pickle.dump((images[first:last], list(records[first:last])), f)
            worker.send(path)
            jobs.append((label, worker, slice(first, last)))
      for label, worker, part in jobs:
        values, problem = worker.receive(deadline, part.stop - part.start)
        if problem:
          result.failures.append(f"reward {label}: {problem}")
        result.terms[label][part] = values
    return result

  def close(self) -> None:
    """Ends the processes."""
    for workers in self._workers.values():
      for worker in workers:
        worker.end()

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *_) -> None:
    self.close()


class _Worker:
  """One process that serves one reward."""

  def __init__(self, term: base.Term):
    self._term = term
    self._start()

  def _start(self) -> None:
    context = multiprocessing.get_context("spawn")
    self._pipe, end = context.Pipe()
    self._process = context.Process(target=_serve, args=(self._term, end), daemon=True)
    with child.environment(_ENVIRONMENT):
      self._process.start()
    end.close()

  def send(self, path: str) -> None:
    """Asks for the scores of the file's images; a dead process is started again."""
    if not self._process.is_alive():
      self._start()
    with contextlib.suppress(OSError):  # it has just died: `receive` finds that
      self._pipe.send(path)

  def receive(self, deadline: float, count: int) -> tuple[np.ndarray, str]:
    """Waits for an answer.

    Returns:
      (float32[count] scores, NaN where they failed; "" or what failed).
    """
    nothing = np.full(count, np.nan, np.float32)
    if not connection.wait([self._pipe], max(0.0, deadline - time.monotonic())):
      self.end()
      return nothing, f"no answer for {count} images in time; its process is started again"
    try:
      values, problem = self._pipe.recv()
    except (EOFError, OSError):
      self._process.join(1.0)
      status = self._process.exitcode
      self.end()
      return nothing, (f"its process died with status {status}, mostly for want of memory if that is -9; "
                       "it is started again")
    if problem:
      return nothing, problem
    if values.shape != (count,):
      return nothing, f"returned {values.dtype}{list(values.shape)} for {count} images"
    finite = np.isfinite(values)
    if not finite.all():
      return np.where(finite, values, np.nan), f"{int((~finite).sum())} of {count} scores are not finite"
    return values, ""

  def end(self) -> None:
    """Kills the process: a reward that hangs hears nothing else."""
    self._process.kill()
    self._process.join()
    self._pipe.close()


def _serve(term: base.Term, pipe: Any) -> None:
  """Answers in the child: (scores, "") or (None, message) for each path."""
  child.end_with_parent()
  score = None
  while True:
    try:
      path = pipe.recv()
    except EOFError:
      return
    try:
      score = score or term.open()
      with open(path, "rb") as f:
        images, records = pickle.load(f)
      answer = np.asarray(score(images, records), np.float32), ""
    except Exception as error:  # any error of a user's reward is an answer
      answer = None, f"{type(error).__name__}: {error}"
    pipe.send(answer)
