"""Checks requests for answers: fields and messages of /v1/chat/completions."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling
from unilip_jax.serve import api_errors, image_requests, options, uploads
from unilip_jax.serve import fields as fields_lib

_DEFAULT_TOKENS = 1024
_MAX_MESSAGES = 512
_MAX_STOPS, _STOP_CHARS = 4, 64
_IGNORED = (
    "model", "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
    "prompt_cache_key", "reasoning_effort", "verbosity", "image_config")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class ChatRequest:
  """Holds a checked request.

  Attributes:
    system: message, or None for the checkpoint's.
    strings: [question, answer, …, question].
    images: uint8[H, W, 3] each.
    options: of the answer.
    seed: of sampling.
    max_tiles: of an image.
    stops: texts that end the answer.
    stream, include_usage: form of the HTTP answer.
    drawing: options of the image that is asked for instead of a text, or None.
  """

  system: str | None
  strings: Sequence[str]
  images: Sequence[np.ndarray]
  options: text_sampling.Options
  seed: int
  max_tiles: int
  stops: Sequence[str]
  stream: bool
  include_usage: bool
  drawing: sampler.Options | None = None


def read(
    fields: fields_lib.Fields, limits: options.Limits, offer: options.Offer) -> ChatRequest:
  """Checks the fields of a request and decodes its images.

  Raises:
    ApiError: 400, naming the field and the choices.
  """
  _refuse(fields)
  fields.ignore(*_IGNORED)
  most = limits.new_tokens
  tokens = fields.integer("max_completion_tokens", 1, most) or fields.integer(
      "max_tokens", 1, most, min(_DEFAULT_TOKENS, most))
  sampling = text_sampling.Options(
      tokens, fields.number("temperature", 0.0, 10.0, 0.0),
      fields.number("top_p", 0.0, 1.0, 1.0, above=True))
  seed, = image_requests.seeds(fields.seed("seed"), 1)
  stream_options = fields.raw("stream_options") or {}
  if not isinstance(stream_options, dict):
    raise _invalid("stream_options", "stream_options must be an object")
  stream = fields.flag("stream")
  max_tiles = fields.integer("max_tiles", 1, offer.max_tiles, offer.max_tiles)
  system, strings, urls = _conversation(fields.raw("messages"))
  drawing = image_requests.sampling(fields, offer) if _draws(fields.raw("modalities")) else None
  return ChatRequest(
      system, strings, _images(urls, 1 if drawing else limits.images, limits.pixels), sampling, seed,
      max_tiles, _stops(fields.raw("stop")), stream, stream_options.get("include_usage") is True, drawing)


def _images(urls: Sequence[Any], most: int, max_pixels: int) -> list[np.ndarray]:
  """Decodes images that together have at most `max_pixels`."""
  if len(urls) > most:
    raise api_errors.ApiError(
        400, "too_many_images", f"the conversation has {len(urls)} images; at most {most} are taken here",
        "messages")
  images: list[np.ndarray] = []
  for url in urls:
    images.append(uploads.from_url(url, "messages", max_pixels))
    max_pixels -= images[-1].size // 3
  return images


def _refuse(fields: fields_lib.Fields) -> None:
  """Refuses what OpenAI's API and other servers have and this server lacks."""
  why = "the model answers with texts and images"
  for name in ("tools", "functions", "audio", "prediction", "web_search_options"):
    fields.refuse(name, why)
  for name in ("tool_choice", "function_call"):
    fields.refuse(name, why, "none", "auto")
  fields.refuse("response_format", "answers are free text", {"type": "text"})
  fields.refuse("n", "one answer a request", 1)
  fields.refuse("best_of", "one answer a request", 1)
  for name in ("logprobs", "top_logprobs", "logit_bias"):
    fields.refuse(name, "probabilities are not returned or changed", 0)
  for name in ("frequency_penalty", "presence_penalty", "min_p", "ignore_eos", "use_beam_search"):
    fields.refuse(name, "sampling has temperature and top_p", 0)
  fields.refuse("top_k", "sampling has temperature and top_p", 0, -1)
  fields.refuse("repetition_penalty", "sampling has temperature and top_p", 1)


def _draws(modalities: Any) -> bool:
  """Returns whether an image is asked for: by `modalities`, as OpenRouter has it."""
  if modalities is None:
    return False
  known = isinstance(modalities, list) and all(m in ("text", "image") for m in modalities)
  if not known or not modalities:
    raise _invalid("modalities", 'modalities must be ["text"], or have "image" for an image as the answer')
  return "image" in modalities


def _conversation(messages: Any) -> tuple[str | None, list[str], list[Any]]:
  """Returns (system message or None, [question, answer, …, question], addresses of images)."""
  if not isinstance(messages, list) or not messages or len(messages) > _MAX_MESSAGES:
    raise _invalid("messages", f"messages must be a list of 1 to {_MAX_MESSAGES} messages")
  system: list[str] = []
  turns: list[tuple[str, str]] = []
  urls: list[Any] = []
  for message in messages:
    if not isinstance(message, dict):
      raise _invalid("messages", "each message must be an object with role and content")
    role = message.get("role")
    role = _ROLES.get(role) if isinstance(role, str) else None
    if role is None:
      raise _invalid("messages", "a message's role must be system, developer, user or assistant")
    text, images = _content(message.get("content"))
    if images and role != "user":
      raise _invalid("messages", "only messages of the user have images")
    urls += images
    if role == "system":
      system.append(text)
    elif turns and turns[-1][0] == role:
      turns[-1] = (role, f"{turns[-1][1]}\n{text}")
    else:
      turns.append((role, text))
  if not turns or turns[0][0] != "user" or turns[-1][0] != "user":
    raise _invalid("messages", "a conversation must begin and end with a message of the user")
  return "\n".join(system) if system else None, [text for _, text in turns], urls


def _content(content: Any) -> tuple[str, list[Any]]:
  """Returns (text, addresses of images) of a message's content: a text, null, or a list of parts."""
  if content is None or isinstance(content, str):
    return content or "", []
  if not isinstance(content, list):
    raise _invalid("messages", "a message's content must be a text or a list of parts")
  texts: list[str] = []
  urls: list[Any] = []
  for part in content:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text") and isinstance(part.get("text"), str):
      texts.append(part["text"])
    elif kind == "image_url":
      value = part.get("image_url")
      urls.append(value.get("url") if isinstance(value, Mapping) else value)
    else:
      raise _invalid("messages", "a part must be {type: text, text} or {type: image_url, image_url: {url}}")
  return "\n".join(texts), urls


def _stops(value: Any) -> list[str]:
  stops = [value] if isinstance(value, str) else value or []
  if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(
      isinstance(stop, str) and 0 < len(stop) <= _STOP_CHARS for stop in stops):
    raise _invalid("stop", f"stop must be a text or a list of at most {_MAX_STOPS} texts of at most "
                   f"{_STOP_CHARS} characters")
  return stops


def _invalid(name: str, message: str) -> api_errors.ApiError:
  return api_errors.ApiError(400, f"invalid_{name}", message, name)
