"""The HTTP routes: OpenAI's API, /health and /metrics."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
import contextlib
import dataclasses
import json
import secrets
import time
from typing import Any

import numpy as np
from starlette import applications, datastructures, exceptions, requests, responses, routing

from unilip_jax.common import rectangles
from unilip_jax.infer import rows as rows_lib
from unilip_jax.serve import (
  answers,
  api_errors,
  chat_requests,
  gate,
  image_requests,
  metrics,
  scheduler,
  service,
  uploads,
)
from unilip_jax.serve import fields as fields_lib

_PING_SECONDS = 15.0
_IGNORED = "x-ignored-fields"  # header with the fields that have no meaning here


def make_app(served: service.Service, key: str = "") -> applications.Starlette:
  """Makes the application.

  Args:
    served: runs the requests.
    key: that requests of the API must bring; "" for none.
  """
  routes = _Routes(served)
  app = applications.Starlette(
      routes=[
          routing.Route("/v1/models", routes.models),
          routing.Route("/v1/models/{name:path}", routes.model),
          routing.Route("/v1/images/generations", routes.generations, methods=["POST"]),
          routing.Route("/v1/images/edits", routes.edits, methods=["POST"]),
          routing.Route("/v1/chat/completions", routes.chat, methods=["POST"]),
          routing.Route("/health", routes.health), routing.Route("/metrics", routes.metrics)],
      exception_handlers={exceptions.HTTPException: _of_starlette})
  app.add_middleware(gate.Gate, served=served, key=key)
  return app


class _Routes:
  """Answers the requests of one service."""

  def __init__(self, served: service.Service):
    self._served = served

  async def models(self, request: requests.Request) -> responses.Response:
    return _json({"object": "list", "data": [self._model(name) for name in self._served.names()]})

  async def model(self, request: requests.Request) -> responses.Response:
    name = request.path_params["name"]
    self._served.model(name)
    return _json(self._model(name))

  def _model(self, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": self._served.created, "owned_by": "unilip_jax"}

  async def health(self, request: requests.Request) -> responses.Response:
    alive = self._served.scheduler.alive and not self._served.stopping
    return responses.Response(status_code=200 if alive else 503)

  async def metrics(self, request: requests.Request) -> responses.Response:
    served = self._served
    return responses.Response(
        served.metrics.text(served.scheduler.waiting(), served.open_requests),
        media_type=metrics.CONTENT_TYPE)

  # ---- images

  async def generations(self, request: requests.Request) -> responses.Response:
    return await self._images(request, *await self._generation(request))

  async def _generation(
      self, request: requests.Request) -> tuple[str, image_requests.ImageRequest, list[str]]:
    """Reads a request: (id of the model, what to make, fields without a meaning)."""
    async with self._served.bodies.json(request) as body:
      fields = fields_lib.Fields(body)
      name, rows = self._served.model(fields.raw("model"))
      fields.refuse("image", "send edits to /v1/images/edits")
      return name, self._image_request(fields, rows, None), fields.unknown()

  async def edits(self, request: requests.Request) -> responses.Response:
    return await self._images(request, *await self._edit(request))

  async def _edit(self, request: requests.Request) -> tuple[str, image_requests.ImageRequest, list[str]]:
    async with self._served.bodies.form(request) as form:
      fields = fields_lib.Fields(
          {k: v for k, v in form.multi_items() if k not in ("image", "image[]")}, form=True)
      name, rows = self._served.model(fields.raw("model"))
      size = image_requests.size_of(fields, rows.model.image_size, self._served.offer)
      image = await self._uploaded(name, [*form.getlist("image"), *form.getlist("image[]")], size)
      return name, self._image_request(fields, rows, image), fields.unknown()

  def _image_request(
      self, fields: fields_lib.Fields, rows: Any, image: np.ndarray | None) -> image_requests.ImageRequest:
    served = self._served
    return image_requests.read(fields, image, rows.model.image_size, served.limits, served.offer)

  async def _uploaded(
      self, model: str, files: Sequence[Any], size: rectangles.Size | None) -> np.ndarray:
    """Decodes the image of an edit and resizes it, see `service.Service.fit`."""
    if len(files) != 1:
      many = len(files) > 1
      raise api_errors.ApiError(
          400, "too_many_images" if many else "missing_image",
          f"{len(files)} images; the model edits one" if many else "send one image as the file `image`",
          "image")
    if not isinstance(files[0], datastructures.UploadFile):
      raise api_errors.ApiError(400, "invalid_image", "image must be a file", "image")
    data = await files[0].read()
    return await self._served.bodies.in_thread(lambda: self._served.fit(
        model, uploads.from_bytes(data, "image", self._served.limits.pixels), size))

  async def _images(
      self, request: requests.Request, model: str, checked: image_requests.ImageRequest,
      unknown: Sequence[str]) -> responses.Response:
    async def make():
      images = await self._served.sample(
          model, checked.prompt, checked.seeds, checked.options, checked.image, size=checked.size)
      encode = lambda: [uploads.encode(i, checked.output_format, checked.quality) for i in images]
      body = checked.answer(int(time.time()), await self._served.bodies.in_thread(encode))
      return _json(body, _ignored(unknown))

    return await self._unless_gone(request, make())

  # ---- chat

  async def _question(
      self, request: requests.Request
  ) -> tuple[str, chat_requests.ChatRequest, rows_lib.Question | None, dict[str, str]]:
    """Reads a request: (id of the model, what to answer, the tokenized conversation unless an image is
    asked for, headers of the answer)."""
    served = self._served
    async with served.bodies.json(request) as body:
      fields = fields_lib.Fields(body)
      name, _ = served.model(fields.raw("model"))

      def read():
        checked = chat_requests.read(fields, served.limits, served.offer)
        if checked.drawing:
          fitted = [served.fit(name, image) for image in checked.images]
          return dataclasses.replace(checked, images=fitted), None
        return dataclasses.replace(checked, images=[]), served.question(name, checked)

      return name, *await served.bodies.in_thread(read), _ignored(fields.unknown())

  async def chat(self, request: requests.Request) -> responses.Response:
    served = self._served
    name, checked, question, headers = await self._question(request)
    completion = answers.Completion(secrets.token_hex(12), int(time.time()), name)
    if question is None:
      return await self._unless_gone(request, self._drawn(name, checked, completion, headers))
    rows = served.models[name]
    text = answers.TextStream(rows.decode, rows.stop, checked.stops)
    if checked.stream:
      stack = contextlib.ExitStack()
      job = stack.enter_context(served.answering(name, question))  # a full queue is an HTTP status
      events = self._events(job, text, completion, checked, len(question.ids))
      return _EventStream(events, stack, headers)

    async def answer():
      parts = []
      with served.answering(name, question) as job:
        async for tokens, complete in job.updates():
          parts.append(text.update(tokens, complete))
          if text.finish_reason:
            break
      usage = answers.usage(len(question.ids), text.tokens)
      return _json(completion.complete("".join(parts), text.finish_reason, usage, checked.seed), headers)

    return await self._unless_gone(request, answer())

  async def _drawn(
      self, model: str, checked: chat_requests.ChatRequest, completion: answers.Completion,
      headers: dict[str, str]) -> responses.Response:
    """Answers with an image: made from the last question, or edited as it says."""
    image, = await self._served.sample(
        model, checked.strings[-1], [checked.seed], checked.drawing, *checked.images)
    images = [answers.image_part(await self._served.bodies.in_thread(uploads.encode, image))]
    usage = answers.usage(0, 0)
    if not checked.stream:
      return _json(completion.complete("", "stop", usage, checked.seed, images=images), headers)
    events = [completion.chunk({"role": "assistant", "content": ""}, seed=checked.seed),
              completion.chunk({"images": images}), completion.chunk({}, "stop"),
              *([completion.usage(usage)] if checked.include_usage else []), answers.DONE]
    return responses.Response(b"".join(events), media_type="text/event-stream", headers=headers)

  async def _events(
      self, job: scheduler.Job, text: answers.TextStream, completion: answers.Completion,
      checked: chat_requests.ChatRequest, prompt_tokens: int) -> AsyncIterator[bytes]:
    """Yields the events of an answer."""
    deadline = asyncio.get_running_loop().time() + self._served.limits.seconds
    try:
      yield completion.chunk({"role": "assistant", "content": ""}, seed=checked.seed)
      async for update in service.with_pings(job.updates(), _PING_SECONDS, deadline):
        if update is None:
          yield answers.PING
          continue
        if new := text.update(*update):
          yield completion.chunk({"content": new})
        if text.finish_reason:
          break
      yield completion.chunk({}, text.finish_reason)
      if checked.include_usage:
        yield completion.usage(answers.usage(prompt_tokens, text.tokens))
    except TimeoutError:
      yield answers.event(api_errors.timeout(self._served.limits.seconds).body())
    except api_errors.ApiError as error:
      yield answers.event(error.body())
    except asyncio.CancelledError:  # Starlette ends this generator so when the client leaves
      self._served.metrics.cancelled.inc()
      raise
    yield answers.DONE

  # ---- shared

  async def _unless_gone(
      self, request: requests.Request, work: Awaitable[responses.Response]) -> responses.Response:
    """Returns the response of `work`; cancels it when the client leaves or the time is over."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
      await asyncio.wait(
          {task, gone}, timeout=self._served.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
      if task.done():
        return task.result()
      if gone.done():
        self._served.metrics.cancelled.inc()
        return responses.Response(status_code=499)  # nobody reads it; the log does
      raise api_errors.timeout(self._served.limits.seconds)
    finally:
      for one in (task, gone):
        one.cancel()
      await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: requests.Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass


class _EventStream(responses.StreamingResponse):
  """Sends events; frees their job also when the client leaves before the first."""

  def __init__(self, events: AsyncIterator[bytes], job: contextlib.ExitStack, headers: dict[str, str]):
    super().__init__(events, media_type="text/event-stream",
                     headers={"cache-control": "no-cache", "x-accel-buffering": "no"} | headers)
    self._job = job

  async def __call__(self, scope, receive, send) -> None:
    with self._job:
      await super().__call__(scope, receive, send)


def _json(body: dict[str, Any], headers: dict[str, str] | None = None) -> responses.Response:
  # Half a surrogate pair, which JSON can carry and UTF-8 cannot, stays escaped.
  return responses.Response(json.dumps(body), media_type="application/json", headers=headers)


def _ignored(unknown: Sequence[str]) -> dict[str, str]:
  return {_IGNORED: ", ".join(unknown)} if unknown else {}


async def _of_starlette(
    request: requests.Request, error: exceptions.HTTPException) -> responses.Response:
  """Answers an unknown path or a wrong method in the shape of all other errors."""
  code = {404: "unknown_path", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
  made = api_errors.ApiError(
      error.status_code, code, f"{code.replace('_', ' ')}; docs/serving.md lists the paths")
  return gate.error_response(made, dict(error.headers or {}))
