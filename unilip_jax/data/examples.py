"""Turns an encoded record into one example: pure functions of (record, randomness), NumPy and PIL only.

Each class makes one kind of example; its instances are pickled into worker processes. Shapes, dtypes
and ranges are those of batch.py.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np

from unilip_jax.common import json_text
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import conversations, decode, latent_rows, rgb, sources, user_text
from unilip_jax.data import latents as latents_lib
from unilip_jax.data import text as text_lib
from unilip_jax.models import presets

_RECORD_BYTES = 2**14  # of a prompt and what rewards need to know about it, as JSON
_LONGEST_PROMPT = 1000  # characters; longer text→image prompts are skipped (official)


class Skipped(decode.BadRecordError):
  """A valid record that training leaves out by rule; it is replaced and not counted as broken."""


class Maker(Protocol):
  """Makes one kind of example."""

  def spec(self, batch_size: int) -> batch_lib.Spec:
    """Returns the spec of a batch of these examples."""

  def __call__(
      self, record: sources.Record, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Makes one example; without `rng`, as in evaluation, nothing is random.

    Raises:
      decode.BadRecordError: for an unusable record; Skipped for one that a rule leaves out.
    """


@dataclasses.dataclass(frozen=True)
class Reconstruct:
  """An image, cropped and flipped at random.

  Attributes:
    size: pixels per side, or (height, width).
    crop: see decode.fit.
    flip: mirror left and right with probability 0.5.
    max_pixels: larger images are refused.
    scaled: see decode.prepare; False in evaluation, also below.
  """

  size: int | tuple[int, int]
  crop: str
  flip: bool
  max_pixels: int
  scaled: bool = False

  def spec(self, batch_size: int) -> batch_lib.Spec:
    return batch_lib.reconstruct_spec(batch_size, self.size)

  def __call__(
      self, record: sources.Record, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Returns {image}; `rng` may be None if neither crop nor flip is random.

    Raises:
      decode.BadImageError: for an unusable image.
    """
    return {"image": decode.prepare(
        record.parts["image"], size=self.size, crop=self.crop, flip=self.flip,
        max_pixels=self.max_pixels, rng=rng, note=_note_of(record), scaled=self.scaled)}


@dataclasses.dataclass(frozen=True)
class Target:
  """The target image of a generation stage alone, prepared as TextToImage and Edit do.

  Attributes:
    size: pixels per side.
    max_pixels: larger images are refused.
  """

  size: int
  max_pixels: int
  scaled: bool = False

  def spec(self, batch_size: int) -> batch_lib.Spec:
    return dict(batch_lib.reconstruct_spec(batch_size, self.size)) | {
        "_digest": jax.ShapeDtypeStruct((batch_size, latent_rows.DIGEST), np.uint8)}

  def __call__(
      self, record: sources.Record, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Returns {image, _digest: hash of its file}.

    Raises:
      decode.BadImageError: for an unusable image.
    """
    del rng
    return {"image": _stretch(record, "image", self), "_digest": latent_rows.digest(record.parts["image"])}


@dataclasses.dataclass(frozen=True)
class TextToImage:
  """A prompt and its image, stretched to the model's square without crop or flip (official).

  Attributes:
    size: pixels per side, or (height, width).
    length: tokens of the prompt.
    text: tokenizer and layouts.
    dropout: probability that the prompt is left out.
    max_pixels: larger images are refused.
    latents: (h, w, C) if records hold the target's latents instead of the image.
  """

  size: int | tuple[int, int]
  length: int
  text: text_lib.Text
  dropout: float
  max_pixels: int
  latents: tuple[int, int, int] | None = None
  scaled: bool = False

  def spec(self, batch_size: int) -> batch_lib.Spec:
    return batch_lib.t2i_spec(batch_size, self.size, self.length, self.latents)

  def __call__(
      self, record: sources.Record, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Returns {image or latents, tokens, token_mask}; without `rng` no prompt is dropped.

    Raises:
      decode.BadRecordError: for an unusable image or text; Skipped for an overlong prompt.
    """
    prompt = _prompt(record, rng, self.dropout, self.text)
    if prompt is not None and len(prompt) > _LONGEST_PROMPT:
      raise Skipped(f"a prompt of {len(prompt)} characters")
    tokens, mask = self.text.generation(prompt, self.length)
    return _target(record, self) | {"tokens": tokens, "token_mask": mask}


@dataclasses.dataclass(frozen=True)
class Edit:
  """An instruction, the input image and the output image; other fields as of TextToImage.

  Attributes:
    image_tokens: tokens of the input image.
  """

  size: int | tuple[int, int]
  length: int
  image_tokens: int
  text: text_lib.Text
  dropout: float
  max_pixels: int
  latents: tuple[int, int, int] | None = None
  scaled: bool = False

  def spec(self, batch_size: int) -> batch_lib.Spec:
    return batch_lib.edit_spec(batch_size, self.size, self.length, self.latents)

  def __call__(
      self, record: sources.Record, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Returns {image or latents, cond_image, tokens, token_mask}.

    A dropped instruction keeps the input image. Without `rng` no instruction is dropped.

    Raises:
      decode.BadRecordError: for an unusable image or text.
    """
    tokens, mask = self.text.editing(
        _prompt(record, rng, self.dropout, self.text), self.image_tokens, self.length)
    return _target(record, self) | {
        "cond_image": _stretch(record, "cond_image", self)[None],
        "tokens": tokens, "token_mask": mask}


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt without an image to learn from, for reward training; fields as of Edit.

  Attributes:
    size: pixels per side of the image to edit; None for text→image.
  """

  length: int
  text: text_lib.Text
  max_pixels: int
  size: int | None = None
  image_tokens: int = 0
  scaled: bool = False

  def spec(self, batch_size: int) -> batch_lib.Spec:
    return batch_lib.prompt_spec(batch_size, self.length, _RECORD_BYTES, self.size)

  def __call__(
      self, record: sources.Record, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Returns {tokens, token_mask, _record, cond_image of an edit}; no prompt is dropped.

    Raises:
      decode.BadRecordError: for an unusable text, image or record; Skipped for an overlong prompt.
    """
    del rng
    prompt = _prompt(record, None, 0.0, self.text)
    try:
      data = dict(json_text.loads(record.parts["record"]))
    except (TypeError, ValueError) as error:
      raise decode.BadRecordError(f"the record is not a JSON object: {error}") from error
    content = json.dumps({"prompt": prompt, "data": data}).encode()
    if len(content) > _RECORD_BYTES:
      raise Skipped(f"prompt and record of {len(content)} bytes")
    padded = np.zeros(_RECORD_BYTES, np.uint8)
    padded[:len(content)] = np.frombuffer(content, np.uint8)
    if self.size is None:
      tokens, mask = self.text.generation(prompt, self.length)
      return {"tokens": tokens, "token_mask": mask, "_record": padded}
    tokens, mask = self.text.editing(prompt, self.image_tokens, self.length)
    return {"cond_image": _stretch(record, "cond_image", self)[None],
            "tokens": tokens, "token_mask": mask, "_record": padded}


@dataclasses.dataclass(frozen=True)
class Understand:
  """A conversation about one image.

  The record's `turns` is JSON in one of the forms of conversations.py; other keys are not read.

  Attributes:
    size: pixels per side.
    length: tokens of the conversation.
    image_tokens: tokens of the image.
    text: tokenizer and layouts.
    system: message; "" for none.
    max_pixels: larger images are refused.
  """

  size: int
  length: int
  image_tokens: int
  text: text_lib.Text
  system: str
  max_pixels: int
  scaled: bool = False

  def spec(self, batch_size: int) -> batch_lib.Spec:
    return batch_lib.understand_spec(batch_size, self.size, self.length)

  def __call__(
      self, record: sources.Record, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Returns {cond_image, tokens, token_mask, answer_mask}; `rng` shuffles the turns.

    Raises:
      decode.BadRecordError: for an unusable image or conversation.
    """
    turns = _turns(record)
    _check(self.text, [text for turn in turns for text in (turn.question, turn.answer)])
    if rng is not None:
      turns = [turns[i] for i in rng.permutation(len(turns))]
    try:
      tokens, mask, answers = self.text.conversation(
          turns, 1, self.image_tokens, self.length, system=self.system)
    except text_lib.PromptTooLongError as error:
      raise decode.BadRecordError(str(error)) from error
    return {"cond_image": _stretch(record, "cond_image", self)[None],
            "tokens": tokens, "token_mask": mask, "answer_mask": answers}


def make(
    name: str, config: ml_collections.ConfigDict, latents: tuple[int, int, int] | None = None,
    scaled: bool = False) -> Maker:
  """Builds the maker of a kind of example from a run's config.

  Args:
    name: a key of sources.PARTS.
    config: uses image_size, size, data.* and text.*.
    latents: (h, w, C) if records hold the targets' latents (latents.py); None reads images.
    scaled: see decode.prepare.

  Raises:
    ValueError: for an unknown name or crop.
  """
  size, max_pixels = config.image_size, config.data.max_pixels
  if name == "reconstruct":
    if config.data.crop not in decode.CROPS:
      raise ValueError(f"unknown data.crop {config.data.crop!r}; choose one of {decode.CROPS}")
    return Reconstruct(size, config.data.crop, config.data.flip, max_pixels, scaled)
  if name not in sources.PARTS:
    raise ValueError(f"unknown kind of example {name!r}; known: {', '.join(sources.PARTS)}")
  text, t = text_lib.Text(config.text.tokenizer), config.text
  image_tokens = presets.get(config.size).tokenizer.image_tokens(size)
  if name == "prompt":
    return Prompt(t.t2i_length, text, max_pixels, scaled=scaled)
  if name == "edit_prompt":
    return Prompt(t.edit_length, text, max_pixels, size, image_tokens, scaled)
  if name == "t2i":
    return TextToImage(size, t.t2i_length, text, t.prompt_dropout, max_pixels, latents, scaled)
  if name == "edit":
    return Edit(size, t.edit_length, image_tokens, text, t.prompt_dropout, max_pixels, latents, scaled)
  return Understand(size, t.chat_length, image_tokens, text, t.system, max_pixels, scaled)


def _stretch(record: sources.Record, part: str, maker: Any) -> np.ndarray:
  """Prepares an image for a maker that has `size`, `max_pixels` and `scaled`."""
  return decode.prepare(
      record.parts[part], size=maker.size, crop=record.crop, flip=False, rng=None,
      max_pixels=maker.max_pixels, note=_note_of(record), scaled=maker.scaled)


def _note_of(record: sources.Record) -> rgb.Note:
  """Counts notes about an image, with the record's name for the log."""
  return functools.partial(rgb.count, example=f"{record.key} in {record.shard}")


def _target(record: sources.Record, maker: TextToImage | Edit) -> dict[str, np.ndarray]:
  if maker.latents is None:
    return {"image": _stretch(record, "image", maker)}
  return {"latents": latents_lib.from_bytes(record.parts["latents"], maker.latents)}


def _prompt(
    record: sources.Record, rng: np.random.Generator | None, dropout: float, layout: text_lib.Text
) -> str | None:
  """Returns the record's text on one line, or None if it is dropped."""
  if rng is not None and rng.random() < dropout:
    return None
  try:
    text = user_text.line(record.parts["text"])
  except ValueError as error:
    raise decode.BadRecordError(str(error)) from error
  _check(layout, [text])
  return text


def _check(layout: text_lib.Text, texts: Sequence[str]) -> None:
  """Raises BadRecordError for a text that is empty without special tokens."""
  try:
    layout.check(texts)
  except ValueError as error:
    raise decode.BadRecordError(str(error)) from error


def _turns(record: sources.Record) -> list[text_lib.Turn]:
  try:
    return [text_lib.Turn(*turn) for turn in conversations.parse(record.parts["turns"])]
  except ValueError as error:
    raise decode.BadRecordError(str(error)) from error
