"""Answers of a conversation as text and as JSON: complete, or in chunks as server-sent events."""

from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any

from unilip_jax.serve import uploads

_PARTIAL = "\ufffd"  # what the tokenizer returns for an incomplete character


class TextStream:
  """Turns growing lists of tokens into text that never changes once it was returned.

  Attributes:
    finish_reason: "stop" or "length" once the answer is complete, else "".
    tokens: of the answer, without the one that ended it.
  """

  def __init__(self, decode: Callable[[Sequence[int]], str], stop_token: int, stops: Sequence[str]):
    """Starts with an empty text.

    Args:
      decode: tokens to text.
      stop_token: ends an answer and is no part of it.
      stops: texts that end an answer and are no part of it.
    """
    self._decode, self._stop_token, self._stops = decode, stop_token, stops
    self._sent, self.finish_reason, self.tokens = "", "", 0

  def update(self, ids: Sequence[int], complete: bool) -> str:
    """Returns the new part of the text.

    Args:
      ids: all tokens so far.
      complete: whether these are all.
    """
    ids = list(map(int, ids))
    stopped = self._stop_token in ids
    own = ids[:ids.index(self._stop_token)] if stopped else ids
    text, self.tokens = self._decode(own).lstrip(), len(own)
    ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
    if ends:
      text = text[:min(ends)]
    if ends or complete or stopped:
      self.finish_reason = "stop" if ends or stopped else "length"
      stable = text.rstrip()
    else:
      stable = self._stable(text)
    new = stable[len(self._sent):] if stable.startswith(self._sent) else ""
    self._sent += new
    return new

  def _stable(self, text: str) -> str:
    """Cuts what later tokens may change: half a character, space, the beginning of a stop text."""
    text = text.rstrip(_PARTIAL)
    parts = ((n, stop[:n]) for stop in self._stops for n in range(1, len(stop)))
    held = max((n for n, part in parts if text.endswith(part)), default=0)
    return text[:len(text) - held].rstrip()


class Completion:
  """Formats one answer."""

  def __init__(self, number: str, created: int, model: str):
    """Keeps what all its parts have in common: id, time in seconds, name of the model."""
    self._head = {"id": f"chatcmpl-{number}", "created": created, "model": model}

  def complete(
      self, text: str, finish_reason: str, usage: Mapping[str, int], seed: int, **more: Any
  ) -> dict[str, Any]:
    """Returns the JSON body of a complete answer; `more` is of its message."""
    return {**self._head, "object": "chat.completion", "usage": dict(usage), "seed": seed, "choices": [{
        "index": 0, "finish_reason": finish_reason, "logprobs": None,
        "message": {"role": "assistant", "content": text, "refusal": None, **more}}]}

  def chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    """Returns the event of a part of an answer."""
    return event({**self._head, "object": "chat.completion.chunk", **more, "choices": [{
        "index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}]})

  def usage(self, usage: Mapping[str, int]) -> bytes:
    """Returns the event with the numbers of tokens."""
    return event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": dict(usage)})


def image_part(png: bytes) -> dict[str, Any]:
  """Returns an image as a part of a message."""
  return {"type": "image_url", "image_url": {
      "url": f"data:image/png;base64,{uploads.as_base64(png)}"}}


def event(value: Mapping[str, Any]) -> bytes:
  """Returns a server-sent event."""
  return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"  # keeps connections open while a request waits


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
  """Returns the numbers of tokens as the API names them."""
  return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
          "total_tokens": prompt_tokens + completion_tokens}
