"""The page: tabs to generate, edit, reconstruct, chat and compare, in the server's process under /ui.

Needs gradio. Nothing of the host can be read through it: no path is allowed beyond gradio's own folder of
uploads, sharing is off, images are sent as PNG, and exceptions are not shown: `api_errors` are.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
import contextlib
import functools
import hmac
import os
import time
from typing import Any

from absl import logging
import numpy as np
from starlette import applications

from unilip_jax.plan import chips
from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling
from unilip_jax.serve import answers, api_errors, chat_requests, image_requests, service, uploads

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
import gradio as gr

PATH = "/ui"
_CHIP = "v5e"
_USER = "unilip"  # of the login, whose password is the server's key
_MAX_IMAGES = 8
_DELETE = (600, 3600)  # every so many seconds, files of uploads and results that are older than this
_SHAPES = {  # what the included weights know
    "generate": ["a yellow cross and a red square", "a large blue circle left of a green triangle"],
    "edit": ["make the yellow cross blue", "change the background to grey", "remove the red square"],
    "chat": ["What colour is the cross?", "How many objects are there?"]}
_PHOTOS = {
    "generate": ["a red kite above a beach, photograph", "a bowl of lemons, oil painting"],
    "edit": ["make it winter", "turn it into a watercolour"],
    "chat": ["What is in this image?", "Describe the image in one sentence."]}


def mount(app: applications.Starlette, served: service.Service, key: str = "") -> applications.Starlette:
  """Mounts the page on the application.

  Args:
    app: of app.make_app.
    served: runs the requests.
    key: password of the page's login, "" for none.
  """
  auth = (lambda user, password: hmac.compare_digest(password.encode(), key.encode())) if key else None
  return gr.mount_gradio_app(
      app, _Page(served).blocks(), path=PATH, show_error=False, allowed_paths=[], auth=auth,
      auth_message=f"user {_USER}, password: the server's key" if key else None, footer_links=[],
      run_history=False, max_file_size=served.limits.body_bytes, ssr_mode=False)


class _Page:
  """Makes the components and answers their events."""

  def __init__(self, served: service.Service):
    self._served, self._names = served, list(served.models)
    self._first = served.models[self._names[0]]
    self._size = self._first.model.image_size
    self._sizes = {image_requests.size_text(s): s for s in served.offer.all_sizes(self._size)}
    self._examples = _SHAPES if self._first.is_shapes else _PHOTOS
    self._flops = functools.cache(
        lambda name, steps, editing: served.models[name].image_flops(steps, editing=editing))

  def blocks(self) -> gr.Blocks:
    """Makes the page."""
    tabs = {"generate": self._generate_tab, "edit": self._edit_tab, "reconstruct": self._reconstruct_tab,
            "chat": self._chat_tab}
    with gr.Blocks(title="UniLIP", analytics_enabled=False, delete_cache=_DELETE) as blocks:
      gr.Markdown(f"# UniLIP\n{', '.join(self._names)} · images of {self._size} × {self._size} pixels")
      for name, make in tabs.items():
        if name in self._first.abilities:
          with gr.Tab(name.capitalize(), id=name):
            make()
      if len(self._names) > 1 and "generate" in self._first.abilities:
        with gr.Tab("Compare", id="compare"):
          self._compare_tab()
    return blocks.queue(default_concurrency_limit=None, max_size=self._served.limits.queue)

  # ---- tabs

  def _generate_tab(self) -> None:
    with gr.Row():
      with gr.Column():
        prompt = gr.Textbox(label="Prompt", lines=2)
        options, cost = self._options(editing=False)
        run = gr.Button("Generate", variant="primary")
        gr.Examples([[text] for text in self._examples["generate"]], [prompt])
      with gr.Column():
        gallery, note = self._gallery()
    self._on([run.click, prompt.submit], self._generate, [prompt, *options], [gallery, note, cost])

  def _edit_tab(self) -> None:
    with gr.Row():
      with gr.Column():
        image, prompt = self._upload(), gr.Textbox(label="Instruction", lines=2)
        options, cost = self._options(editing=True)
        run = gr.Button("Edit", variant="primary")
        gr.Examples([[text] for text in self._examples["edit"]], [prompt])
      with gr.Column():
        gallery, note = self._gallery()
    self._on([run.click, prompt.submit], self._edit, [image, prompt, *options], [gallery, note, cost])

  def _reconstruct_tab(self) -> None:
    with gr.Row():
      with gr.Column():
        image, model = self._upload(), self._model_choice()
        run = gr.Button("Reconstruct", variant="primary")
      with gr.Column():
        gallery, note = self._gallery("Input and reconstruction")
    self._on([run.click], self._reconstruct, [image, model], [gallery, note])

  def _chat_tab(self) -> None:
    with gr.Row():
      with gr.Column(scale=1):
        image, model = self._upload(), self._model_choice()
        with gr.Accordion("Options", open=False):
          temperature = gr.Slider(0.0, 2.0, 0.0, label="Temperature (0: the likeliest answer)")
          tokens = gr.Slider(8, min(1024, self._served.limits.new_tokens), 256, step=8,
                             label="Tokens of the answer, at most")
          seed = self._seed()
      with gr.Column(scale=2):
        history = gr.Chatbot(label="Conversation", height=360, buttons=["copy"])
        question = gr.Textbox(label="Question")
        with gr.Row():
          ask, clear = gr.Button("Ask", variant="primary"), gr.Button("New conversation")
        gr.Examples([[text] for text in self._examples["chat"]], [question])
    self._on([ask.click, question.submit], self._chat,
             [image, question, history, model, temperature, tokens, seed], [history, question])
    clear.click(lambda: ([], ""), None, [history, question], api_visibility="private")

  def _compare_tab(self) -> None:
    with gr.Row():
      prompt = gr.Textbox(label="Prompt, or instruction if there is an image", lines=2)
      image = self._upload("Image to edit (may be empty)")
    steps, guidance, seed = self._steps(), self._guidance(), self._seed()
    run = gr.Button("Compare", variant="primary")
    with gr.Row():
      outputs = [self._images_of(name) for name in self._names]
    note = gr.Markdown()
    gr.Examples([[text] for text in self._examples["generate"]], [prompt])
    self._on([run.click, prompt.submit], self._compare, [prompt, image, steps, guidance, seed],
             [*outputs, note])

  # ---- components

  def _options(self, *, editing: bool) -> tuple[list[Any], Any]:
    """Makes the options of images: ([steps, guidance, count, seed, size, model], text of the cost)."""
    with gr.Accordion("Options", open=True):
      with gr.Row():
        steps, guidance = self._steps(), self._guidance()
      with gr.Row():
        count = gr.Slider(1, min(_MAX_IMAGES, self._served.limits.images), 1, step=1, label="Images")
        size = gr.Dropdown(list(self._sizes), label="Size (width x height)", interactive=True)
      seed, model = self._seed(), self._model_choice()
    cost = gr.Markdown()
    estimate = functools.partial(self._cost, editing)
    for component in (steps, count, model):
      component.change(estimate, [model, steps, count], cost, api_visibility="private")
    return [steps, guidance, count, seed, size, model], cost

  def _steps(self) -> Any:
    choices = [str(n) for n in sorted(self._served.offer.steps)]
    return gr.Dropdown(choices, value=str(self._served.offer.steps[0]), label="Steps", interactive=True)

  def _guidance(self) -> Any:
    offer = self._served.offer
    return gr.Slider(1.0, offer.max_guidance, offer.guidance, step=0.1, label="Guidance")

  def _seed(self) -> Any:
    return gr.Textbox(label="Seed", placeholder="empty: another one every time")

  def _model_choice(self) -> Any:
    return gr.Dropdown(self._names, value=self._names[0], label="Model", visible=len(self._names) > 1,
                       interactive=True)

  def _upload(self, label: str = "Image") -> Any:
    # A path: the image is decoded by uploads.py, within the limit of pixels.
    return gr.Image(label=label, type="filepath", image_mode=None, format="png", height=280,
                    sources=["upload", "clipboard"], buttons=[])

  def _gallery(self, label: str = "Images") -> tuple[Any, Any]:
    return self._images_of(label), gr.Markdown()

  def _images_of(self, label: str) -> Any:
    return gr.Gallery(
        label=label, format="png", columns=2, fit_columns=False, height=480, object_fit="contain",
        interactive=False, buttons=["download", "fullscreen"])

  def _on(self, events: Sequence[Any], run: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    gr.on(events, run, inputs, outputs, api_visibility="private", concurrency_limit=None)

  # ---- events

  async def _generate(self, prompt, steps, guidance, count, seed, size, model, progress=gr.Progress()):  # noqa: B008
    with self._errors():
      return await self._images(prompt, None, steps, guidance, count, seed, size, model, progress)

  async def _edit(self, path, prompt, steps, guidance, count, seed, size, model, progress=gr.Progress()):  # noqa: B008
    with self._errors():
      image = await self._fitted(path, model, self._chosen(size))
      return await self._images(prompt, image, steps, guidance, count, seed, size, model, progress)

  async def _images(self, prompt, image, steps, guidance, count, seed, size, model, progress):
    """Returns (gallery, note, cost)."""
    pixels = self._chosen(size)
    seeds = image_requests.seeds(_seed_of(seed), _count_of(count))
    progress((0, len(seeds)), desc=f"{self._served.scheduler.waiting()} wait before this", unit="images")
    begin = time.monotonic()
    made = await self._served.sample(
        self._checked(model), prompt or "", seeds, self._sampling(steps, guidance), image,
        size=pixels, on_image=lambda n: progress((n, len(seeds)), unit="images"))
    seconds = (time.monotonic() - begin) / len(made)
    note = f"{seconds:.1f} s per image on this server; seeds {', '.join(map(str, seeds))}"
    cost = await asyncio.to_thread(self._cost, image is not None, model, steps, count)
    return [(pixels, f"seed {s}") for pixels, s in zip(made, seeds)], note, cost

  async def _reconstruct(self, path, model):
    with self._errors():
      name = self._checked(model)
      square = await self._fitted(path, name, (self._size,) * 2, "center")
      out = await self._served.reconstruct(name, square)
      error = np.mean((out.astype(np.float64) - square) ** 2)
      psnr = 10 * np.log10(255**2 / error) if error else np.inf
      return [(square, "input"), (out, "reconstruction")], f"PSNR {psnr:.2f} dB"

  async def _compare(self, prompt, path, steps, guidance, seed):
    with self._errors():
      image = await self._fitted(path, self._names[0], (self._size,) * 2) if path else None
      seeds, sampling = image_requests.seeds(_seed_of(seed), 1), self._sampling(steps, guidance)
      made = await asyncio.gather(*(
          self._served.sample(name, prompt or "", seeds, sampling, image) for name in self._names))
      return *made, f"seed {seeds[0]} for both"

  async def _chat(self, path, question, history, model, temperature, tokens, seed) -> AsyncIterator[Any]:
    """Yields (history, question box) while the answer grows."""
    with self._errors():
      turns = [*_turns(history), question or ""]
      name = self._checked(model)
      options = text_sampling.Options(_count_of(tokens, self._served.limits.new_tokens), float(temperature))
      number = image_requests.seeds(_seed_of(seed), 1)[0]
      asked = await self._served.bodies.in_thread(
          lambda: self._served.question(name, chat_requests.ChatRequest(
              None, turns, [self._read(path)] if path else [], options, number,
              self._served.offer.max_tiles, (), True, False)))
      rows = self._served.models[name]
      text, answer = answers.TextStream(rows.decode, rows.stop, ()), ""
      history = [*history, {"role": "user", "content": question}]
      with self._served.answering(name, asked) as job:
        async for update in job.updates():
          answer += text.update(*update)
          yield [*history, {"role": "assistant", "content": answer or "…"}], ""
          if text.finish_reason:
            return

  def _cost(self, editing: bool, model: str, steps: str, count: float) -> str:
    """Says what images would take on a TPU, at least."""
    with self._errors():
      flops = _count_of(count) * self._flops(
          self._checked(model), self._sampling(steps, 1.0).steps, editing)
    seconds = flops / chips.CHIPS[_CHIP].peak
    return (f"{flops / 1e9:.3g} GFLOP: at least {1000 * seconds:.2g} ms of one {_CHIP} chip "
            "(matrix multiplications at its peak)")

  # ---- checks: a browser may send anything

  def _checked(self, model: Any) -> str:
    return self._served.model(model)[0]

  def _sampling(self, steps: Any, guidance: Any) -> sampler.Options:
    if steps not in map(str, self._served.offer.steps):
      raise api_errors.ApiError(400, "invalid_steps", "steps: choose one of the list")
    try:
      return sampler.Options(int(steps), min(float(guidance), self._served.offer.max_guidance))
    except (TypeError, ValueError):
      raise api_errors.ApiError(400, "invalid_guidance", "guidance: choose a number") from None

  def _read(self, path: str) -> np.ndarray:
    return uploads.from_file(path, "image", self._served.limits.pixels)

  async def _fitted(
      self, path: str | None, model: Any, size: tuple[int, int], crop: str = "stretch") -> np.ndarray:
    if not path:
      raise api_errors.ApiError(400, "missing_image", "choose an image first")
    name = self._checked(model)
    return await self._served.bodies.in_thread(
        lambda: self._served.fit(name, self._read(path), size, crop))

  def _chosen(self, size: Any) -> tuple[int, int]:
    if size not in self._sizes:
      raise api_errors.ApiError(400, "invalid_size", "size: choose one of the list")
    return self._sizes[size]

  @contextlib.contextmanager
  def _errors(self):
    """Shows our messages; everything else goes to the log alone."""
    if self._served.stopping:
      raise gr.Error(api_errors.stopping().message, print_exception=False)
    try:
      yield
    except api_errors.ApiError as error:
      raise gr.Error(error.message, print_exception=False) from None
    except Exception:
      logging.exception("the page failed")
      raise gr.Error(api_errors.internal().message, print_exception=False) from None


def _seed_of(text: Any) -> int | None:
  """Reads the seed's field; None if it is empty."""
  text = str(text or "").strip()
  if not text:
    return None
  try:
    seed = int(text[:30])
  except ValueError:
    raise api_errors.ApiError(400, "invalid_seed", "seed: write an integer, or nothing") from None
  if not -2**63 <= seed < 2**64:
    raise api_errors.ApiError(400, "invalid_seed", "seed: write an integer of 64 bits")
  return seed


def _count_of(value: Any, most: int = _MAX_IMAGES) -> int:
  """Reads a number of a slider."""
  if not isinstance(value, int | float) or not 1 <= value <= most:
    raise api_errors.ApiError(400, "invalid_number", f"choose a number from 1 to {most}")
  return int(value)


def _turns(history: Sequence[Any]) -> list[str]:
  """Returns the texts of a conversation; gradio keeps each as a list of parts."""
  turns = []
  for message in history:
    content = message["content"]
    parts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
    turns.append("".join(parts))
  return turns
