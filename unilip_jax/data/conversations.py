"""Reads conversations as people store them: pairs of question and answer, LLaVA's and ShareGPT's lists.

  {"turns": [[question, answer], …]}
  {"conversations": [{"from": "human", "value": "<image>\\nwhat?"}, {"from": "gpt", "value": "a cat"}]}
  {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a cat"}]}
"""

from collections.abc import Mapping
import json
from typing import Any

from unilip_jax.common import json_text

IMAGE_MARK = "<image>"
FIELDS = ("turns", "conversations", "conversation", "messages")
_SIDES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1, "model": 1, "bot": 1}


def turns_of(entry: Mapping[str, Any]) -> list[list[str]]:
  """Returns [[question, answer], …] of an entry, without `<image>`; a leading system message is left out.

  Raises:
    ValueError: with the reason, if it is no conversation in which questions and answers alternate.
  """
  field = next((name for name in FIELDS if entry.get(name) is not None), "turns")
  value = entry.get(field)
  if isinstance(value, str):  # a column of CSV or Parquet may hold it as JSON
    try:
      value = json_text.loads(value)
    except ValueError as error:
      raise ValueError(f"bad turns: {field} is no JSON: {error}") from error
  if not isinstance(value, list):
    raise ValueError(f"bad turns: {field} is {str(value)[:60]!r}, not a list")
  turns = value if field == "turns" else _paired(field, value)
  for turn in turns:
    if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
      raise ValueError(f"bad turns: one is {str(turn)[:60]!r}, not [question, answer]")
    if not all(t.strip() for t in turn):
      raise ValueError("bad turns: a question or an answer is empty")
  if not turns:
    raise ValueError("bad turns: there are none")
  return turns


def parse(data: bytes) -> list[list[str]]:
  """Returns the turns of a JSON file, see `turns_of`.

  Raises:
    ValueError: with the reason, also for text that holds half of a surrogate pair.
  """
  try:
    entry = json_text.loads(data.decode("utf-8-sig"))
  except ValueError as error:
    raise ValueError(f"bad turns: the JSON is broken: {error}") from error
  if not isinstance(entry, Mapping):
    raise ValueError(f"bad turns: the JSON is a {type(entry).__name__}, not an object")
  turns = turns_of(entry)
  as_json(turns).encode()
  return turns


def as_json(turns: list[list[str]]) -> str:
  """Returns turns as the part `turns` of a record (data/examples.py)."""
  return json.dumps({"turns": turns}, ensure_ascii=False)


def _paired(field: str, messages: list[Any]) -> list[list[str]]:
  """Pairs the messages of a conversation."""
  said = [_message(message) for message in messages]
  if (marks := sum(text.count(IMAGE_MARK) for _, text in said)) > 1:
    raise ValueError(f"bad turns: {marks} × {IMAGE_MARK} in one conversation, where one image is read")
  if said and said[0][0] == "system":
    said = said[1:]
  if len(said) % 2:
    raise ValueError(f"bad turns: {len(said)} entries of {field}; questions and answers must alternate")
  for i, (side, _) in enumerate(said):
    if _SIDES.get(side) != i % 2:
      raise ValueError('bad turns: conversations must alternate between "human" (or "user") and "gpt" '
                       f'(or "assistant"); entry {i} is of {side!r}')
  words = [text.replace(IMAGE_MARK, "").strip() for _, text in said]
  return [words[i:i + 2] for i in range(0, len(words), 2)]


def _message(message: Any) -> tuple[str, str]:
  """Returns (who says it, text with a mark for each image) of a message."""
  if not isinstance(message, Mapping):
    raise ValueError(f"bad turns: an entry is {str(message)[:60]!r}, not an object")
  side = message.get("from", message.get("role"))
  text = message.get("value", message.get("content"))
  if isinstance(text, list):  # parts of a message, as chat APIs have them
    text = "\n".join(_part(part) for part in text)
  if not isinstance(side, str) or not isinstance(text, str):
    raise ValueError(f"bad turns: {str(message)[:60]!r} lacks from and value, or role and content")
  return side, text


def _part(part: Any) -> str:
  """Returns the text of a part of a message, or the mark of an image."""
  if isinstance(part, Mapping):
    if isinstance(part.get("text"), str):
      return part["text"]
    if str(part.get("type", "")).startswith("image"):
      return IMAGE_MARK
  raise ValueError(f"bad turns: a part of a message is {str(part)[:60]!r}, neither a text nor an image")
