"""Runs examples of several callers in one batch, each with its own seed and options: for servers.

A row is what `UniLIP` returns for it alone with the same seed and options: image rows take their first
noise from their own seed, answers their random keys. Batches have one of a fixed set of sizes, so that few
programs are compiled; missing rows repeat the last one.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.common import arguments, rectangles
from unilip_jax.data import text as text_lib
from unilip_jax.infer import description
from unilip_jax.infer import model as model_lib
from unilip_jax.models import unilip
from unilip_jax.ops import programs, seeds
from unilip_jax.sampling import images as image_sampling
from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling
from unilip_jax.training import flops

_ROOMS = (1024, 4096, 16384)  # tokens of an answer for which a cache has room
_SHORTEST = 64  # tokens to which conversations are padded at least
_CHUNK = 8  # tokens of an answer between two looks at who still waits for it


@dataclasses.dataclass(frozen=True)
class Question:
  """Holds a tokenized conversation and the options of its answer.

  Attributes:
    ids: tokens of the conversation.
    tiles: uint8[T, R, R, 3] of each of its images.
    max_new_tokens, temperature, top_p, seed: as of `UniLIP.chat`.
  """

  ids: Sequence[int]
  tiles: Sequence[np.ndarray]
  max_new_tokens: int
  temperature: float
  top_p: float
  seed: int

  @property
  def shape(self) -> tuple[int, int, int]:
    """(tokens, tiles, room) of its batch: questions of equal shapes share batches."""
    return (padded_length(len(self.ids)), sum(map(len, self.tiles)),
            next(room for room in _ROOMS if room >= self.max_new_tokens))


def padded_length(tokens: int) -> int:
  """Returns 64, 96, 128, 192, 256, …: the least that holds `tokens`, so that there are few lengths."""
  length = _SHORTEST
  while length < tokens:
    length = length * 3 // 2 if length.bit_count() == 1 else length * 4 // 3
  return length


class Rows:
  """Runs batches of one model.

  Attributes:
    model: as given.
    abilities: of "reconstruct", "generate", "edit" and "chat" those that the model has.
    batch_sizes: of the programs, in ascending order.
  """

  def __init__(self, model: model_lib.UniLIP, batch_sizes: Sequence[int]):
    """Compiles nothing yet.

    Args:
      model: the loaded checkpoint.
      batch_sizes: numbers of rows that programs are compiled for.

    Raises:
      ValueError: for a batch size below 1, or a network that needs noise at every step.
    """
    if self.few_step_of(model) == "consistency":
      raise ValueError("this checkpoint was distilled by consistency (distill.method): its steps draw new "
                       "noise, and rows have no seeds of their own for it; use `unilip infer`")
    self.model = model
    self.batch_sizes = tuple(sorted({arguments.integer("batch_sizes", n, 1) for n in batch_sizes}))
    held = set(model._params)
    self.abilities = tuple(
        name for name in ("reconstruct", "generate", "edit", "chat")
        if set(description.ABILITIES[name]) <= held)
    self._noise = programs.Program(image_sampling.noise, static_argnames=("first", "shape"))
    if "chat" in self.abilities:
      begin, advance = _answer_programs(model._model, model._text.image_slot, self.stop)
      self._begin = programs.Program(begin, static_argnames=("room",))
      self._advance = programs.Program(advance, donate_argnames=("answers",))

  @staticmethod
  def few_step_of(model: model_lib.UniLIP) -> str:
    """Returns the kind of few-step network that the model has, "" for any other."""
    return model.dims.few_step if model.dims else ""

  def check(self, options: sampler.Options) -> None:
    """Refuses options that the model cannot sample with, with a ValueError."""
    if "generate" in self.abilities:
      options.check(self.few_step_of(self.model))

  @property
  def largest(self) -> int:
    """Rows of the largest batch."""
    return self.batch_sizes[-1]

  @property
  def is_shapes(self) -> bool:
    """Whether the model has the tokenizer of Shapes, as the included weights and runs on Shapes do."""
    text = self.model._text
    return text is not None and text_lib.same_tokenizer(text.path, "shapes")

  # ---- images

  def prompt_length(
      self, prompt: str, *, editing: bool, size: rectangles.Size | None = None) -> int:
    """Returns the tokens of a prompt as it is padded; only prompts of equal lengths share batches.

    `size` is (height, width) of the image; None is the model's square.

    Raises:
      ValueError: for a prompt that is empty or does not fit.
    """
    return self.model._sampler.prompt_length(prompt, editing=editing, size=size)

  def sample(
      self, prompts: Sequence[str], own_seeds: Sequence[int], options: sampler.Options,
      inputs: Sequence[np.ndarray] | None = None, *, size: rectangles.Size | None = None
  ) -> list[np.ndarray]:
    """Samples one image per prompt as `UniLIP.generate` or `UniLIP.edit` with its seed.

    Args:
      prompts: at most `largest`, of one `prompt_length`.
      own_seeds: of each image.
      options: of all.
      inputs: uint8[H, W, 3] of each image to edit.
      size: (height, width) of all images; None is the model's square.

    Returns:
      uint8[height, width, 3] each.
    """
    shape = (1, *self.model._sampler.latents_of(size or (self.model.image_size,) * 2))
    first = [np.asarray(self._noise(seeds.words(seed), first=0, shape=shape))[0] for seed in own_seeds]
    (prompts, first, *inputs), count = self._padded(prompts, first, *(() if inputs is None else (inputs,)))
    call = self.model.edit if inputs else self.model.generate
    return call(*inputs, prompts, latents=np.stack(first), size=size, output="array",
                **dataclasses.asdict(options))[:count]

  def reconstruct(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Reconstructs images uint8[H, W, 3] of one size, at most `largest`, as `UniLIP.reconstruct` does."""
    (images,), count = self._padded(images)
    return self.model.reconstruct(images, output="array")[:count]

  def image_flops(self, steps: int, *, editing: bool) -> float:
    """Counts the FLOPs of the matrix multiplications of one image with a short prompt; compiles nothing."""
    images, size = self.model._sampler, (self.model.image_size,) * 2
    spec = jax.ShapeDtypeStruct
    prompt = {"tokens": spec((1, _SHORTEST), jnp.int32), "token_mask": spec((1, _SHORTEST), jnp.bool_)}
    pixels = spec((1, 1, *size, 3), jnp.uint8) if editing else None
    noise = spec((1, *images.latent_shape), jnp.float32)
    program = functools.partial(images.program, size=size, steps=steps, solver="dpm")
    # A few-step network has its guidance inside, and runs on the prompt alone.
    negative = None if self.model._model.dims.few_step else prompt
    return flops.count(program, self.model._params, prompt, negative, pixels, noise, None,
                       image_sampling.Guidance(spec((), jnp.float32)))

  # ---- answers

  def question(
      self, images: Sequence[np.ndarray], strings: Sequence[str], options: text_sampling.Options, *,
      seed: int, system: str | None = None, max_tiles: int = 12) -> Question:
    """Tokenizes a conversation; arguments as of `UniLIP.chat`.

    Raises:
      ValueError: for empty texts, or a conversation that does not fit.
    """
    self.model._text.check(strings)
    ids, tiles = self.model._chat.encode(
        images, strings, options.max_new_tokens, max_tiles=max_tiles,
        system=self.model._system if system is None else system)
    return Question(ids, tiles, options.max_new_tokens, options.temperature, options.top_p, seed)

  def answer(self, questions: Sequence[Question]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Answers questions of one shape a few tokens at a time, until the caller closes the iterator.

    Args:
      questions: at most `largest`.

    Yields:
      (int32[n, k] tokens of each answer so far, bool[n] whether it is complete). A complete answer ends
      before the first `stop`, or at its question's max_new_tokens.
    """
    length, most_tiles, room = questions[0].shape
    (rows,), count = self._padded(questions)
    tokens, mask = self.model._chat._tokens([q.ids for q in rows], length)
    pixels = self.model._chat._pixels([q.tiles for q in rows], most_tiles)
    options = {
        "keys": jnp.stack([_answer_key(seeds.words(q.seed)) for q in rows]),
        "temperature": np.array([q.temperature for q in rows], np.float32),
        "top_p": np.array([q.top_p for q in rows], np.float32)}
    limits = np.array([q.max_new_tokens for q in questions])
    answers = self._begin(self.model._params, tokens, mask, pixels, room=room, **options)
    while True:
      done, out, written = jax.device_get((answers.done, answers.out, answers.count))
      complete = done[:count] | (written >= limits)
      yield out[:count, :written], complete
      if complete.all():
        return
      until = np.int32(min(written + _CHUNK, limits[~complete].max()))
      answers = self._advance(self.model._params, answers, until, **options)

  @property
  def stop(self) -> int:
    """Token that ends an answer."""
    return self.model._text.turn_end

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of an answer's tokens."""
    return self.model._text.decode(ids)

  # ---- shared

  def _padded(self, *columns: Sequence[Any]) -> tuple[list[list[Any]], int]:
    """Repeats the last row up to a batch size: (columns, rows without padding)."""
    count = len(columns[0])
    size = next(n for n in self.batch_sizes if n >= count)
    return [list(column) + [column[-1]] * (size - count) for column in columns], count


def _answer_programs(
    network: unilip.Unilip, image_slot: int, stop: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Makes the functions that begin and continue answers; they hold no array."""
  def begin(params, tokens, mask, pixels, *, room, keys, temperature, top_p):
    logits, cache = network.answer_prefill(
        params, tokens, mask, image_slot, network.pixel_features(params, pixels))
    return text_sampling.begin(
        logits, cache, room=room, stop=stop, rows=keys, temperature=temperature, top_p=top_p)

  def advance(params, answers, until, *, keys, temperature, top_p):
    step = functools.partial(network.answer_step, params)
    return text_sampling.advance(
        step, answers, until, stop=stop, rows=keys, temperature=temperature, top_p=top_p)

  return begin, advance


@jax.jit
def _answer_key(words: np.ndarray) -> jax.Array:
  """The random key of the only answer of a call of `UniLIP.chat` with this seed."""
  return text_sampling.row_keys(words, 0, 1)[0]


