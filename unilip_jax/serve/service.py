"""What HTTP and the page have in common: checked requests to rows, and rows to results."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
import contextlib
import time
from typing import Any

import numpy as np

from unilip_jax.common import rectangles
from unilip_jax.data import decode
from unilip_jax.infer import rows as rows_lib
from unilip_jax.sampling import sampler
from unilip_jax.serve import api_errors, bodies, chat_requests, engine, options, scheduler
from unilip_jax.serve import metrics as metrics_lib

_CHARS_PER_TOKEN = 8  # longer texts are refused before they are tokenized


class Service:
  """Runs requests.

  Attributes:
    models: checkpoints by id, the default first.
    limits, offer: of the server.
    metrics: of the server.
    bodies: reads bodies.
    created: seconds since 1970.
    stopping: whether new requests are refused.
    open_requests: requests of the API that are being answered.
  """

  def __init__(
      self, models: Mapping[str, rows_lib.Rows], limits: options.Limits, offer: options.Offer):
    """Starts the worker; compiles nothing.

    Args:
      models: checkpoints by id, the default first.
      limits: of the server.
      offer: of the server.
    """
    self.models, self.limits, self.offer = dict(models), limits, offer
    self.metrics, self.bodies = metrics_lib.Metrics(), bodies.Reader(limits)
    self.engine = engine.Engine(self.models, self.metrics)
    self.scheduler = scheduler.Scheduler(self.engine.run, self.engine.largest, limit=limits.queue)
    self.created, self.stopping, self.open_requests = int(time.time()), False, 0

  def names(self) -> list[str]:
    """Returns the names that requests may call models by."""
    return [*self.models, *self.offer.aliases]

  def model(self, name: Any) -> tuple[str, rows_lib.Rows]:
    """Returns (id, checkpoint) of a name; of None, the default.

    Raises:
      ApiError: 404, with the names.
    """
    default = next(iter(self.models))
    if name is None or name == "" or (isinstance(name, str) and name in self.offer.aliases):
      name = default
    if not isinstance(name, str) or name not in self.models:
      raise api_errors.ApiError(
          404, "model_not_found", f"this server has the models {', '.join(self.names())}", "model")
    return name, self.models[name]

  def check_ability(self, rows: rows_lib.Rows, kind: str) -> None:
    """Refuses what a checkpoint lacks the modules for.

    Raises:
      ApiError: 400.
    """
    if kind not in rows.abilities:
      raise api_errors.ApiError(
          400, "model_lacks_ability", f"this checkpoint cannot {kind}; it can {', '.join(rows.abilities)}",
          "model")

  async def sample(
      self, model: str, prompt: str, seeds: Sequence[int], sampling: sampler.Options,
      image: np.ndarray | None = None, *, size: rectangles.Size | None = None,
      on_image: Callable[[int], None] | None = None
  ) -> list[np.ndarray]:
    """Makes one image per seed.

    Args:
      model: id.
      prompt: or the instruction of an edit.
      seeds: of the images.
      sampling: options.
      image: uint8[H, W, 3] to edit, see `fit`.
      size: (height, width) of images without one to edit; None is the model's square.
      on_image: called with the number of images that are complete.

    Returns:
      uint8[H, W, 3] each.

    Raises:
      ApiError: for prompts that are empty or do not fit, a full queue, or a failure.
    """
    kind, rows = "generate" if image is None else "edit", self.models[model]
    self.check_ability(rows, kind)
    _checked("guidance_scale", lambda: rows.check(sampling))
    size = (size or (rows.model.image_size,) * 2) if image is None else image.shape[:2]
    length = await self.bodies.in_thread(_checked, "prompt", lambda: rows.prompt_length(
        prompt, editing=image is not None, size=size))
    group = engine.Group(model, kind, (sampling, length, size))
    jobs = [scheduler.Job(group, engine.ImageRow(prompt, seed, image)) for seed in seeds]
    with self._submitted(jobs):
      results = []
      for job in jobs:
        results.append(await job.result())
        if on_image:
          on_image(len(results))
      return results

  async def reconstruct(self, model: str, image: np.ndarray) -> np.ndarray:
    """Encodes and decodes uint8[H, W, 3], see `fit`."""
    self.check_ability(self.models[model], "reconstruct")
    job = scheduler.Job(engine.Group(model, "reconstruct", image.shape), engine.ImageRow("", 0, image))
    with self._submitted([job]):
      return await job.result()

  def fit(
      self, model: str, image: np.ndarray, size: rectangles.Size | None = None, crop: str = "stretch"
  ) -> np.ndarray:
    """Resizes uint8[H, W, 3] to a size as `UniLIP.edit` does, or with another `crop`.

    Called in the thread that decoded the image, so that no request waits with a large one.

    Args:
      model: id.
      image: of a client.
      size: (height, width); None is the one that is offered whose shape is nearest to the image's.
      crop: see decode.fit.
    """
    if size is None:
      offered = self.offer.all_sizes(self.models[model].model.image_size)
      size = offered[rectangles.nearest(image.shape[:2], offered)]
    return decode.fit(image, size, crop)

  def question(self, model: str, request: chat_requests.ChatRequest) -> rows_lib.Question:
    """Tokenizes a conversation and cuts its images into tiles; called as `fit`.

    Raises:
      ApiError: 400 for texts that are empty or too long.
    """
    rows, limits = self.models[model], self.limits
    self.check_ability(rows, "chat")
    too_long = lambda count: api_errors.ApiError(
        400, "context_length_exceeded", f"the conversation has {count}; at most {limits.prompt_tokens} "
        "tokens are taken, with those of its images", "messages")
    characters = sum(map(len, request.strings)) + len(request.system or "")
    if characters > _CHARS_PER_TOKEN * limits.prompt_tokens:
      raise too_long(f"{characters} characters")
    question = _checked("messages", lambda: rows.question(
        request.images, list(request.strings), request.options, seed=request.seed, system=request.system,
        max_tiles=request.max_tiles))
    if len(question.ids) > limits.prompt_tokens:
      raise too_long(f"{len(question.ids)} tokens")
    return question

  @contextlib.contextmanager
  def answering(self, model: str, question: rows_lib.Question):
    """Queues a question; inside, the job's `updates` yield (tokens so far, whether they are all)."""
    job = scheduler.Job(engine.Group(model, "chat", question.shape), question)
    with self._submitted([job]):
      yield job

  @contextlib.contextmanager
  def _submitted(self, jobs: Sequence[scheduler.Job]):
    """Queues jobs; frees their places when the block ends, however it ends."""
    self.scheduler.submit(jobs)
    try:
      yield
    finally:
      self.scheduler.cancel(jobs)


def _checked(field: str, check: Callable[[], Any]) -> Any:
  """Runs a check of the package, whose messages are written for users."""
  try:
    return check()
  except ValueError as error:
    message = str(error).replace("prompt 0", "the prompt")  # checks of lists number their items
    raise api_errors.ApiError(400, f"invalid_{field}", message[:300], field) from None


async def with_pings(updates: AsyncIterator[Any], seconds: float, deadline: float) -> AsyncIterator[Any]:
  """Yields updates, and None after each `seconds` without one.

  Raises:
    TimeoutError: at `deadline`, a time of the event loop.
  """
  loop = asyncio.get_running_loop()
  following = None
  try:
    while True:
      following = following or asyncio.ensure_future(anext(updates, updates))
      left = deadline - loop.time()
      done, _ = await asyncio.wait({following}, timeout=max(0.0, min(seconds, left)))
      if not done:
        if loop.time() >= deadline:
          raise TimeoutError
        yield None
        continue
      value, following = following.result(), None
      if value is updates:
        return
      yield value
  finally:
    if following is not None:
      following.cancel()
