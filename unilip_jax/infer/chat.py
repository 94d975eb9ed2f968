"""Answers questions about images: tokenizes conversations, cuts images into tiles, runs them in batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from unilip_jax.data import text as text_lib
from unilip_jax.data import tiles
from unilip_jax.models import unilip
from unilip_jax.ops import programs, seeds
from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib

_BUCKET = 32  # conversations are padded to multiples of this many tokens
_LONGEST = 32768  # tokens of a conversation and its answer (max_position_embeddings of the LLM)


class Chat:
  """Answers conversations with the LLM of a model."""

  def __init__(
      self, model: unilip.Unilip, text: text_lib.Text, *, image_size: int, batch_size: int,
      mesh: jax.sharding.Mesh | None = None):
    """Compiles nothing yet; calls compile one program per length, number of tiles and options.

    Args:
      model: the networks.
      text: tokenizer and layout of conversations.
      image_size: pixels per side of a tile.
      batch_size: conversations that run at once, over all devices.
      mesh: the devices; None is the default device.
    """
    self._text, self._mesh = text, mesh
    self._image_size, self._batch_size = image_size, batch_size
    self._image_tokens = model.dims.tokenizer.image_tokens(image_size)
    program, sharding = _program(model, text.image_slot, text.turn_end), None
    if mesh is not None:
      program, sharding = activations.under(mesh, program), mesh_lib.replicated(mesh)
    self._run = programs.Program(
        program, static_argnames=("max_new_tokens", "temperature", "top_p"), out_shardings=sharding)

  def answer(
      self, params: Mapping[str, Any], images: Sequence[Sequence[np.ndarray]],
      conversations: Sequence[Sequence[str]], options: text_sampling.Options, *, seed: int, system: str,
      max_tiles: int
  ) -> list[str]:
    """Answers the last question of each conversation.

    Args:
      params: of the modules of chat, on the device.
      images: those of each conversation, uint8[H, W, 3]; several share tiles.TOTAL tiles.
      conversations: [question, answer, …, question] each.
      options: of the answers.
      seed, system, max_tiles: see UniLIP.chat.

    Raises:
      ValueError: for a conversation that does not end with a question, or is too long.
    """
    words = seeds.words(seed)
    if not isinstance(system, str):
      raise ValueError(f"system={system!r}: choose a text")
    ids, tiled = zip(*(
        self.encode(each, strings, options.max_new_tokens, system=system, max_tiles=max_tiles,
                    name=f"conversation {i}")
        for i, (each, strings) in enumerate(zip(images, conversations))))
    length = -(-max(map(len, ids)) // _BUCKET) * _BUCKET
    most_tiles = max(sum(map(len, each)) for each in tiled)
    answers: list[str] = []
    batch_size = min(self._batch_size, len(ids)) if self._mesh is None else self._batch_size
    for part, count in sampler.padded_batches(range(len(ids)), batch_size):
      rows = (*self._tokens([ids[i] for i in part], length),
              self._pixels([tiled[i] for i in part], most_tiles))
      if self._mesh is not None:
        rows = mesh_lib.put(rows, jax.tree.map(lambda _: mesh_lib.batch_sharding(self._mesh), rows))
      out, lengths = jax.device_get(self._run(
          params, *rows, np.int32(part[0]), words,
          max_new_tokens=int(options.max_new_tokens), temperature=float(options.temperature),
          top_p=float(options.top_p)))
      answers += [self._text.decode(o[:n]).strip() for o, n in zip(out[:count], lengths)]
    return answers

  def encode(
      self, images: Sequence[np.ndarray], strings: Sequence[str], max_new_tokens: int, *, system: str,
      max_tiles: int, name: str = "the conversation"
  ) -> tuple[list[int], list[np.ndarray]]:
    """Tokenizes one conversation and cuts its images into tiles; arguments as of `answer`.

    Returns:
      (ids, uint8[T, R, R, 3] of each image).

    Raises:
      ValueError: as `answer`.
    """
    most = tiles.per_image(max_tiles, len(images))
    tiled = [tiles.tiles(Image.fromarray(image), self._image_size, most) for image in images]
    ids = self._text.encode(self._text.chat(
        turns(strings), [len(t) for t in tiled], self._image_tokens, system=system))
    if len(ids) + max_new_tokens > _LONGEST:
      raise ValueError(
          f"{name} has {len(ids)} tokens, and {max_new_tokens} are for its answer; at "
          f"most {_LONGEST} fit: shorten it, or lower max_new_tokens or max_tiles")
    return ids, tiled

  def _tokens(self, ids: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads conversations: (tokens int32[B, length], mask bool[B, length])."""
    tokens = np.full((len(ids), length), self._text.pad, np.int32)
    for row, one in zip(tokens, ids):
      row[:len(one)] = one
    return tokens, np.arange(length)[None] < np.array([len(one) for one in ids])[:, None]

  def _pixels(self, tiled: Sequence[Sequence[np.ndarray]], most_tiles: int) -> np.ndarray | None:
    """Pads tiles to uint8[B, most_tiles, R, R, 3]; None if there are none."""
    if not most_tiles:
      return None
    pixels = np.zeros((len(tiled), most_tiles, self._image_size, self._image_size, 3), np.uint8)
    for row, each in zip(pixels, tiled):
      if each:
        row[:sum(map(len, each))] = np.concatenate(each)
    return pixels


def _program(
    model: unilip.Unilip, image_slot: int, stop: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Makes the function that answers a batch; it holds no array, so that its programs can be stored."""
  def answer(params, tokens, mask, pixels, first, seed, *, max_new_tokens, temperature, top_p):
    logits, cache = model.answer_prefill(
        params, tokens, mask, image_slot, model.pixel_features(params, pixels))
    return text_sampling.decode(
        lambda t, valid, c: model.answer_step(params, t, valid, c), logits, cache,
        max_new_tokens=max_new_tokens, stop=stop, seed=seed, first=first, temperature=temperature,
        top_p=top_p)

  return answer


def turns(strings: Sequence[str]) -> list[text_lib.Turn]:
  """Converts [question, answer, …, question] to turns, the last one without an answer.

  Raises:
    ValueError: for an even number of strings.
  """
  if len(strings) % 2 == 0:
    raise ValueError("a conversation is [question, answer, …, question]: an odd number of strings")
  return [text_lib.Turn(q, a) for q, a in zip(strings[::2], [*strings[1::2], ""])]
