"""Runs the batches of the scheduler with the rows of one or more checkpoints, and compiles at the start."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import time
from typing import Any

from absl import logging
import numpy as np

from unilip_jax.common import rectangles
from unilip_jax.infer import rows as rows_lib
from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling
from unilip_jax.serve import metrics as metrics_lib
from unilip_jax.serve import scheduler

_WARM_UP_TOKENS = 2  # of an answer: programs do not depend on it


@dataclasses.dataclass(frozen=True)
class Group:
  """Names what rows have to share to run in one batch.

  Attributes:
    model: id of the checkpoint.
    kind: of `Rows.abilities`.
    shape: what else decides the program, or is one number of the batch: options, lengths.
  """

  model: str
  kind: str
  shape: Any


@dataclasses.dataclass(frozen=True)
class ImageRow:
  """Holds one image to make.

  Attributes:
    prompt: of the image.
    seed: of its noise.
    image: uint8[H, W, 3] to edit, or None.
  """

  prompt: str
  seed: int
  image: np.ndarray | None = None


class Engine:
  """Makes the generators of batches, see `scheduler.Scheduler`."""

  def __init__(self, models: Mapping[str, rows_lib.Rows], metrics: metrics_lib.Metrics):
    """Runs nothing yet.

    Args:
      models: by id.
      metrics: counts batches.
    """
    self._models, self._metrics = models, metrics

  def largest(self, group: Group) -> int:
    """Returns the rows of a batch at most."""
    return self._models[group.model].largest

  def run(self, group: Group, jobs: Sequence[scheduler.Job]) -> Iterator[None]:
    """Runs a batch; yields after each call of the device."""
    self._metrics.batch_rows.labels(group.kind).observe(len(jobs))
    rows = self._models[group.model]
    steps = {"chat": self._answer, "reconstruct": self._reconstruct}.get(group.kind, self._sample)(
        rows, group, jobs)
    while True:
      begin = time.monotonic()
      try:
        finished = next(steps, self) is self
      finally:
        self._metrics.device_seconds.labels(group.kind).inc(time.monotonic() - begin)
      if finished:
        return
      yield

  def _sample(self, rows: rows_lib.Rows, group: Group, jobs: Sequence[scheduler.Job]) -> Iterator[None]:
    images = [job.row.image for job in jobs]
    made = rows.sample(
        [job.row.prompt for job in jobs], [job.row.seed for job in jobs], group.shape[0],
        images if group.kind == "edit" else None, size=group.shape[2])
    self._publish(group, jobs, made)
    yield

  def _reconstruct(
      self, rows: rows_lib.Rows, group: Group, jobs: Sequence[scheduler.Job]) -> Iterator[None]:
    self._publish(group, jobs, rows.reconstruct([job.row.image for job in jobs]))
    yield

  def _publish(self, group: Group, jobs: Sequence[scheduler.Job], images: Sequence[np.ndarray]) -> None:
    self._metrics.images.labels(group.kind).inc(len(images))
    for job, image in zip(jobs, images):
      job.publish(image)

  def _answer(self, rows: rows_lib.Rows, group: Group, jobs: Sequence[scheduler.Job]) -> Iterator[None]:
    finished = [False] * len(jobs)
    counted = 0
    for tokens, complete in rows.answer([job.row for job in jobs]):
      self._metrics.tokens.inc((tokens.shape[1] - counted) * (len(jobs) - sum(finished)))
      counted = tokens.shape[1]
      for i, job in enumerate(jobs):
        if not finished[i]:
          job.publish(tokens[i, :job.row.max_new_tokens], bool(complete[i]))
          finished[i] = bool(complete[i])
      if all(done or job.cancelled for done, job in zip(finished, jobs)):
        return
      yield

  def warm_up(
      self, steps: Sequence[int], guidance: float, sizes: Sequence[rectangles.Size] = (), *,
      page: bool = True) -> None:
    """Compiles the programs of short prompts, for every model, ability and batch size.

    Args:
      steps: of images, one program each.
      guidance: of images.
      sizes: (height, width) of images besides the models' squares.
      page: whether there is a page; it alone reconstructs.
    """
    todo = [(name, rows, kind) for name, rows in self._models.items() for kind in rows.abilities
            if page or kind != "reconstruct"]
    for number, (name, rows, kind) in enumerate(todo, 1):
      batches = ", ".join(map(str, rows.batch_sizes))
      logging.info("%s: compiling %d of %d: %s, for batches of %s", name, number, len(todo), kind, batches)
      begin = time.monotonic()
      for size in rows.batch_sizes:
        self._warm_up(rows, kind, size, steps, guidance, sizes)
      logging.info("%s: %s is ready after %.0f s", name, kind, time.monotonic() - begin)

  def _warm_up(
      self, rows: rows_lib.Rows, kind: str, size: int, steps: Sequence[int], guidance: float,
      sizes: Sequence[rectangles.Size]) -> None:
    square = (rows.model.image_size,) * 2
    grey = np.full((*square, 3), 128, np.uint8)
    if kind == "reconstruct":
      rows.reconstruct([grey] * size)
    elif kind == "chat":
      options = text_sampling.Options(_WARM_UP_TOKENS)
      for images in ([], [grey]):
        for _ in rows.answer([rows.question(images, ["a"], options, seed=0)] * size):
          pass
    else:
      for number, pixels in itertools.product(steps, {square, *sizes}):
        grey = np.full((*pixels, 3), 128, np.uint8)
        rows.sample(["a"] * size, [0] * size, sampler.Options(steps=number, guidance=guidance),
                    [grey] * size if kind == "edit" else None, size=pixels)
