"""Requests to a judge: chat messages with images, in the chat-completions format."""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
  """Holds the official judge of a benchmark.

  Attributes:
    model: id of the model that published numbers used.
    tries: answers asked for until one parses.
    note: other judges in use, and what differs.
  """

  model: str
  tries: int = 1
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Image:
  """Holds an image part of a message.

  Attributes:
    data: bytes of the image file as it is sent.
    media_type: as declared to the judge (official scripts declare image/png for any file).
  """

  data: bytes
  media_type: str = "image/png"


@dataclasses.dataclass(frozen=True)
class Message:
  """Holds a chat message: text and image parts in order."""

  role: str
  parts: tuple[str | Image, ...]


@dataclasses.dataclass(frozen=True)
class Request:
  """Holds one call of a judge.

  Attributes:
    messages: of the chat.
    key: names the answer within an item ("" if there is only one call).
    temperature, max_tokens: None leaves the service's default.
    extra: further fields of the request body.
  """

  messages: tuple[Message, ...]
  key: str = ""
  temperature: float | None = None
  max_tokens: int | None = None
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def body(self, model: str) -> dict[str, Any]:
    """Returns the JSON body of a chat completion; images become base64 data URLs."""
    body = {"model": model, "messages": [
        {"role": m.role, "content": [_part(p) for p in m.parts]} for m in self.messages]}
    if self.temperature is not None:
      body["temperature"] = self.temperature
    if self.max_tokens is not None:
      body["max_tokens"] = self.max_tokens
    return {**body, **self.extra}

  @functools.cached_property
  def prompt_hash(self) -> str:
    """SHA-256 of everything except the images' bytes: texts, roles, order and parameters."""
    shape = [[m.role, [p if isinstance(p, str) else {"image": p.media_type} for p in m.parts]]
             for m in self.messages]
    text = json.dumps([shape, self.key, self.temperature, self.max_tokens, dict(self.extra)],
                      sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  @functools.cached_property
  def image_hash(self) -> str:
    """SHA-256 over the images' bytes as sent, in order."""
    digest = hashlib.sha256()
    for message in self.messages:
      for part in message.parts:
        if isinstance(part, Image):
          digest.update(hashlib.sha256(part.data).digest())
    return digest.hexdigest()


def from_chat(messages: Sequence[Mapping[str, Any]], images: Sequence[bytes]) -> Request:
  """Converts messages of the chat-completions format whose image parts stand for given files.

  Args:
    messages: content is a text, or a list of parts of type "text" and "image_url".
    images: bytes of the files, in the order of the image parts; declared as the parts' data URLs are.

  Raises:
    ValueError: if the number of image parts differs.
  """
  left = list(images)
  converted = []
  for message in messages:
    content = message["content"]
    parts: list[str | Image] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
      if part["type"] == "text":
        parts.append(part["text"])
      elif left:
        media_type = part["image_url"]["url"].removeprefix("data:").partition(";")[0]
        parts.append(Image(left.pop(0), media_type or "image/png"))
      else:
        raise ValueError(f"the official messages hold more images than the {len(images)} given")
    converted.append(Message(message["role"], tuple(parts)))
  if left:
    raise ValueError(f"the official messages hold {len(left)} images fewer than the {len(images)} given")
  return Request(tuple(converted))


def _part(part: str | Image) -> dict[str, Any]:
  if isinstance(part, str):
    return {"type": "text", "text": part}
  url = f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
  return {"type": "image_url", "image_url": {"url": url}}
