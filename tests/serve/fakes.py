"""A model without networks, and a server of it in a thread of the test."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import threading
import time
import types
from typing import Any
import zlib

import numpy as np

from unilip_jax.infer import rows as rows_lib
from unilip_jax.serve import app, options, server, service

SIZE = 28
STOP = 0


class Rows:
  """Answers as infer.rows.Rows does: images are a function of prompt and seed, answers repeat the question.

  Attributes:
    batches: (kind, rows) of every batch that ran.
    gate: batches wait for it.
    started: set when a batch begins.
    answer_parts: how often an answer was continued.
    fail: an exception that the next batch raises.
  """

  abilities = ("reconstruct", "generate", "edit", "chat")
  batch_sizes = (1, 2, 4)
  largest = 4
  stop = STOP

  def __init__(self):
    self.model = types.SimpleNamespace(image_size=SIZE)
    self.batches: list[tuple[str, int]] = []
    self.gate, self.started = threading.Event(), threading.Event()
    self.gate.set()
    self.answer_parts, self.fail = 0, None

  def prompt_length(self, prompt: str, *, editing: bool, size: tuple[int, int]) -> int:
    if not prompt.strip():
      raise ValueError("prompt 0 is empty")
    return 32

  def check(self, options: Any) -> None:
    """Takes all options, as a model that is not of few steps."""

  def _begin(self, kind: str, count: int) -> None:
    self.batches.append((kind, count))
    self.started.set()
    if not self.gate.wait(30):
      raise TimeoutError
    if self.fail is not None:
      raise self.fail

  def sample(self, prompts, seeds, sampling, inputs=None, *, size) -> list[np.ndarray]:
    self._begin("generate" if inputs is None else "edit", len(prompts))
    assert inputs is None or {x.shape[:2] for x in inputs} == {size}
    return [image_of(p, s, size) if inputs is None else 255 - x
            for p, s, x in zip(prompts, seeds, inputs or prompts)]

  def reconstruct(self, images) -> list[np.ndarray]:
    self._begin("reconstruct", len(images))
    return list(images)

  def question(self, images, strings, sampling, *, seed, system=None, max_tiles=12):
    if not strings[-1].strip():
      raise ValueError("prompt 0 is empty")
    text = strings[-1] + "".join(f" {image.shape[1]}x{image.shape[0]}" for image in images)
    ids = list(text.encode())
    return rows_lib.Question(ids, [np.zeros((1, 1, 1, 3), np.uint8)] * len(images),
                             sampling.max_new_tokens, sampling.temperature, sampling.top_p, seed)

  def answer(self, questions: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    self._begin("chat", len(questions))
    most = max(len(q.ids) for q in questions) + 1
    whole = np.array([list(q.ids) + [STOP] * (most - len(q.ids)) for q in questions])
    limits = np.array([q.max_new_tokens for q in questions])
    written = 0
    while True:
      written = min(written + 2, most)
      part = whole[:, :written]
      complete = (part == STOP).any(1) | (written >= limits)
      yield np.stack([p[:n] if n >= written else np.pad(p[:n], (0, written - n))
                      for p, n in zip(part, limits)]), complete
      if complete.all():
        return
      self.answer_parts += 1
      if not self.gate.wait(30):
        raise TimeoutError

  def decode(self, ids) -> str:
    return bytes(int(i) for i in ids).decode("utf-8", "replace")


def image_of(prompt: str, seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
  """The image that a fake makes of a prompt and a seed."""
  rng = np.random.default_rng([zlib.crc32(prompt.encode()), seed & 2**64 - 1])
  return rng.integers(0, 256, (*size, 3)).astype(np.uint8)


@dataclasses.dataclass
class Running:
  """A server in a thread."""

  url: str
  port: int
  rows: Rows
  served: service.Service
  server: server.Server

  def wait(self, condition, seconds: float = 10.0) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
      assert time.monotonic() < deadline, "it did not happen in time"
      time.sleep(0.005)


@contextlib.contextmanager
def running(
    rows=None, limits: options.Limits | None = None, offer: options.Offer | None = None, key: str = "",
    grace: float = 5.0) -> Iterator[Running]:
  """Runs a server of a model on loopback."""
  rows = rows or Rows()
  served = service.Service({"unilip": rows}, limits or options.Limits(), offer or options.Offer(
      aliases=("gpt-image-1",)))
  runner = server.Server(app.make_app(served, key), served, host="127.0.0.1", port=0, grace=grace)
  thread = threading.Thread(target=runner.run, name="server")
  thread.start()
  try:
    deadline = time.monotonic() + 20
    while not runner.started:
      assert time.monotonic() < deadline
      assert thread.is_alive()
      time.sleep(0.005)
    yield Running(f"http://127.0.0.1:{runner.port}", runner.port, rows, served, runner)
  finally:
    getattr(rows, "gate", threading.Event()).set()
    runner.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
