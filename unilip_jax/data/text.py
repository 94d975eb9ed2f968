"""Text to tokens: the layouts of generation and editing prompts, and InternVL's chat.

Layouts are UniLIP's (reference: the official code's conversation templates): no system message in
generation and editing; the prompt ends with `<img>` and the model appends its queries. A prompt that
is too long loses the end of its own text, never an image token; the log counts such prompts. Reads
tokenizer.json with the `tokenizers` package; transformers is not needed.

No token of a layout comes from a user's text: `Text.remove_tokens` is the one function that removes them,
for prompts, questions, answers and system messages, in training, evaluation and inference.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import os
from typing import Any
import unicodedata

from etils import epath
import numpy as np
import tokenizers

from unilip_jax.common import paths, registry, tally
from unilip_jax.configs import base

IMAGE_START, IMAGE_END, IMAGE_SLOT = "<img>", "</img>", "<IMG_CONTEXT>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
PAD = "<|endoftext|>"
# InternVL's tags of objects and their places. Its own tokenizer keeps them in answers: they are marked as
# special, but are not in its additional_special_tokens. Its prompts contain them too.
GROUNDING = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")

_T2I = (f"{TURN_START}user\nGenerate an image", f"{TURN_END}\n{TURN_START}assistant\n{IMAGE_START}")
_EDIT = f"{TURN_START}user\nEdit the image"


_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode's controls, zero-width characters, separators
_tally = tally.Tally()


class PromptTooLongError(ValueError):
  """The fixed part of a prompt alone exceeds the length."""


@dataclasses.dataclass(frozen=True)
class Turn:
  """One question and its answer; the answer is "" if the model has to generate it."""

  question: str
  answer: str = ""


class Text:
  """A tokenizer and the prompt layouts; pickles as its path, for worker processes."""

  def __init__(self, path: str):
    """Reads a tokenizer.json.

    Args:
      path: of the file or its folder, local or gs://; or a registered name, e.g. "shapes".

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if it lacks one of InternVL's special tokens.
    """
    self.path = os.fspath(path)
    self._tokenizer = _read(self.path)
    ids = {t: self._tokenizer.token_to_id(t)
           for t in (IMAGE_START, IMAGE_END, IMAGE_SLOT, TURN_START, TURN_END, PAD)}
    missing = [t for t, i in ids.items() if i is None]
    if missing:
      raise ValueError(f"{path} lacks the tokens {', '.join(missing)}: it is not InternVL's tokenizer")
    self.pad, self.image_slot, self.turn_end = ids[PAD], ids[IMAGE_SLOT], ids[TURN_END]
    self.size = self._tokenizer.get_vocab_size()
    added = self._tokenizer.get_added_tokens_decoder()
    self._removed = sorted(
        {*ids, *(t.content for t in added.values())} - {*GROUNDING}, key=len, reverse=True)
    self._silent = {i for i, t in added.items() if t.special and t.content not in GROUNDING}

  def __reduce__(self):
    return Text, (self.path,)

  def encode(self, text: str) -> list[int]:
    """Returns the token ids; special tokens in `text` count as such."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of token ids, without special tokens other than GROUNDING."""
    return self._tokenizer.decode(
        [int(i) for i in ids if int(i) not in self._silent], skip_special_tokens=False)

  def remove_tokens(self, text: str) -> str:
    """Removes the strings of special tokens other than GROUNDING from a user's text.

    What is left forms none of them, neither by what the removal joins nor by the tokenizer's normalization.
    The time is linear in the length.
    """
    normalizer = self._tokenizer.normalizer
    while True:
      text = self._without_tokens(text)
      normal = text if normalizer is None else normalizer.normalize_str(text)
      if not any(token in normal for token in self._removed):
        return text
      text = normal

  def _without_tokens(self, text: str) -> str:
    """Removes tokens from left to right, each as soon as it is complete."""
    if not any(token in text for token in self._removed):
      return text
    kept: list[str] = []
    for char in text:
      kept.append(char)
      for token in self._removed:
        if token[-1] == char and "".join(kept[-len(token):]) == token:
          del kept[-len(token):]
          break
    return "".join(kept)

  def clean(self, text: str) -> str:
    """Returns a user's text without special tokens and surrounding whitespace."""
    return self.remove_tokens(text).strip()

  def check(self, prompts: Sequence[str]) -> None:
    """Refuses prompts without text of their own.

    Raises:
      ValueError: if there is none, or one is empty, has only special tokens, or is not text.
    """
    check_prompts(prompts)
    check_prompts([self.clean(prompt) for prompt in prompts])

  def generation(self, prompt: str | None, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Lays out a text→image prompt.

    Args:
      prompt: None for the dropped (or negative) prompt.
      length: tokens of the result.

    Returns:
      (int32[length] tokens through `<img>`, padded on the right; bool[length] mask).
    """
    head, tail = _T2I
    if prompt is None:
      return self._fit(head + ".", "", tail, length)
    return self._fit(head + ": ", self._line(prompt), tail, length)

  def editing(
      self, instruction: str | None, image_tokens: int, length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Lays out the edit of an image of `image_tokens` tokens; otherwise as `generation`."""
    image = IMAGE_START + IMAGE_SLOT * image_tokens + IMAGE_END
    tail = f"\n{image}{_T2I[1]}"
    if instruction is None:
      return self._fit(_EDIT + ".", "", tail, length)
    return self._fit(_EDIT + ": ", self._line(instruction), tail, length)

  def _line(self, text: str) -> str:
    """Returns a clean prompt on one line, as training has them."""
    return " ".join(self.clean(text).split())

  def _fit(self, head: str, text: str, tail: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes head + text + tail and cuts the end of `text` where they exceed `length`."""
    encoding = self._tokenizer.encode(head + text + tail, add_special_tokens=False)
    ids = encoding.ids
    excess = len(ids) - length
    if excess > 0:
      # Tokens all of whose characters are in `text`.
      ends = len(head) + len(text)
      own = [i for i, (a, b) in enumerate(encoding.offsets) if a >= len(head) and a < b <= ends]
      if excess > len(own):
        raise PromptTooLongError(
            f"a prompt without text needs {len(ids) - len(own)} tokens, more than {length}")
      _tally.note(f"prompts are cut to {length} tokens", f"one of {len(ids)}: {text[:60]!r}…")
      cut = set(own[len(own) - excess:])
      ids = [t for i, t in enumerate(ids) if i not in cut]
    return _pad(ids, length, self.pad)

  def chat(
      self, turns: Sequence[Turn], tiles: int | Sequence[int], image_tokens: int, *,
      system: str = base.SYSTEM) -> str:
    """Lays out InternVL's chat up to the answer that the model has to generate.

    Several images are numbered, each on a line of its own: "Image-1: <img>…</img>".

    Args:
      turns: of the conversation; the last answer is "" if the model has to generate it.
      tiles: image tiles in front of the first question, 0 for none; of several images those of each.
      image_tokens: tokens of a tile.
      system: message; "" leaves it out.

    Returns:
      The conversation as text with special tokens.
    """
    system = self.remove_tokens(system)
    text = f"{TURN_START}system\n{system}{TURN_END}\n" if system else ""
    counts = [n for n in ([tiles] if isinstance(tiles, int) else tiles) if n]
    image = "".join(
        f"{f'Image-{k}: ' if len(counts) > 1 else ''}"
        f"{IMAGE_START}{IMAGE_SLOT * image_tokens * n}{IMAGE_END}\n" for k, n in enumerate(counts, 1))
    for i, turn in enumerate(turns):
      question = (image if i == 0 else "") + self.clean(turn.question)
      text += f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n"
      if turn.answer:
        text += f"{self.clean(turn.answer)}{TURN_END}\n"
    return text

  def conversation(
      self, turns: Sequence[Turn], tiles: int, image_tokens: int, length: int, *,
      system: str = base.SYSTEM
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays out a conversation for training.

    Args:
      turns: with answers.
      tiles: see `chat`.
      image_tokens: see `chat`.
      length: tokens of the result; turns that do not fit are left out from the end.
      system: see `chat`.

    Returns:
      (int32[length] tokens, bool[length] mask, bool[length] answers): `answers` marks the tokens of
      the answers, `<|im_end|>` included.

    Raises:
      PromptTooLongError: if not even the first turn fits.
    """
    ids: list[int] = []
    in_answer: list[bool] = []
    prefix = ""
    for i, turn in enumerate(turns):
      with_question = self.chat([*turns[:i], Turn(turn.question)], tiles, image_tokens, system=system)
      with_answer = self.chat(turns[:i + 1], tiles, image_tokens, system=system).removesuffix("\n")
      question = self.encode(with_question[len(prefix):])
      answer = self.encode(with_answer[len(with_question):])
      if len(ids) + len(question) + len(answer) > length:
        if ids:
          _tally.note(f"conversations lose their last turns to fit into {length} tokens",
                      f"one of {len(turns)} turns keeps {i}")
        break
      ids += question + answer
      in_answer += [False] * len(question) + [True] * len(answer)
      prefix = with_answer
    if not ids:
      raise PromptTooLongError(f"the first turn needs {len(question) + len(answer)} tokens, more than "
                               f"{length}")
    tokens, mask = _pad(ids, length, self.pad)
    answers = np.zeros(length, np.bool_)
    answers[:len(in_answer)] = in_answer
    return tokens, mask, answers


def check_prompts(prompts: Sequence[Any]) -> None:
  """Refuses prompts that no tokenizer makes useful; `Text.check` knows special tokens too.

  Raises:
    ValueError: if there is none, or one is empty, invisible, or not text.
  """
  if not len(prompts):
    raise ValueError("no prompt was given")
  for i, prompt in enumerate(prompts):
    if not isinstance(prompt, str):
      raise ValueError(f"prompt {i} is {type(prompt).__name__}, not text: {str(prompt)[:40]}")
    if all(unicodedata.category(char) in _INVISIBLE for char in prompt):
      raise ValueError(f"prompt {i} is empty")
    if any("\ud800" <= char <= "\udfff" for char in prompt):
      raise ValueError(f"prompt {i} is not valid Unicode: it holds one half of a surrogate pair")


def as_list(texts: Any) -> tuple[list[Any], bool]:
  """Returns (list of texts, whether a single one was passed); the texts are checked later."""
  single = isinstance(texts, str | bytes | dict) or not isinstance(texts, Iterable)
  return ([texts], True) if single else (list(texts), False)


def stack_prompts(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
  """Stacks prompts of `Text` to a batch: tokens int32[B, L] and token_mask bool[B, L]."""
  tokens, masks = zip(*rows)
  return {"tokens": np.stack(tokens), "token_mask": np.stack(masks)}


def tokenizer_file(path: str) -> epath.Path:
  """The tokenizer.json that `Text` reads for `path`; it need not exist."""
  named = registry.has("tokenizer", path)
  file = epath.Path(registry.find("tokenizer", path)) if named else paths.path(path, "text.tokenizer")
  return file / "tokenizer.json" if file.is_dir() else file


def same_tokenizer(path: str, other: str) -> bool:
  """Whether two paths, as of `Text`, hold the same tokenizer."""
  return path == other or tokenizer_file(path).read_bytes() == tokenizer_file(other).read_bytes()


def _read(path: str) -> tokenizers.Tokenizer:
  file = tokenizer_file(path)
  if not file.exists():
    raise FileNotFoundError(
        f"there is no tokenizer {file}; it comes with InternVL3 (docs/weights.md), :tiny needs none")
  try:
    return _parse(file.read_text())
  except ValueError as error:
    raise ValueError(f"{file} is no tokenizer.json: {error}; copy the language model's again") from error


@functools.lru_cache(maxsize=4)  # by content: the same path may hold another file later
def _parse(content: str) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_str(content)
  except Exception as error:  # the package raises Exception itself for any wrong content
    raise ValueError(str(error)) from error


def _pad(ids: Sequence[int], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
  tokens = np.full(length, pad, np.int32)
  tokens[:len(ids)] = ids
  return tokens, np.arange(length) < len(ids)
