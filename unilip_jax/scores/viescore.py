"""VIEScore: two judge calls about an edit, semantic consistency and perceptual quality (arXiv 2312.14867).

Each answer holds a list of scores from 0 to 10; the smallest counts, and the overall score is the root of
the product. The official parser repairs little, and on a second try it makes up a random number.
"""

from collections.abc import Mapping
import math
import random
import re
from typing import Any

from unilip_jax.scores import records

_DELIMITER = "||V^=^V||"
_PAIR = re.compile(r"^\[\d+, ?\d+\]$")
_KEY = re.compile(r"(\w+):")
_FIELD = re.compile(r'(".*?"):(.*?)(,|})')
_NUMBER = re.compile(r"^-?\d+(\.\d+)?$")
_LITERAL = re.compile(r"^(true|false|null)$", re.IGNORECASE)
_LARGEST = 1e15  # of a score; beyond it, a square may be no float
RATE_LIMIT = "rate_limit_exceeded"


def parse(answer: str, guess: random.Random | None = None) -> dict[str, Any] | str | None:
  """Reads an answer by the official rule.

  Args:
    answer: raw text.
    guess: the official second try: an answer without braces becomes a random whole number. None, the
      default, never guesses.

  Returns:
    {"score": list, "reasoning": ...}; RATE_LIMIT for that text; None if malformed.
  """
  if answer == RATE_LIMIT:
    return RATE_LIMIT
  if answer.count(_DELIMITER) == 2:
    text = answer[answer.find(_DELIMITER) + len(_DELIMITER):answer.rfind(_DELIMITER)]
  else:
    first, end = answer.find("{"), answer.rfind("}") + 1
    if first == -1 or end == 0:
      return _without_braces(answer, guess)
    text = answer[first:end]
  text = text.strip().replace("\n", "")
  if not text:
    return None
  try:
    value = records.parse_json(text)
    if not isinstance(value["score"], list):
      value["score"] = [value["score"]]
    return value
  except (ValueError, TypeError, KeyError):
    pass  # the official repair is next
  try:
    return records.parse_json(repair(text))
  except ValueError:
    return None


def _without_braces(answer: str, guess: random.Random | None) -> dict[str, Any] | None:
  if guess is not None:
    return {"score": [guess.randint(0, 10)], "reasoning": f"guess_if_cannot_parse | {answer}"}
  pair = answer[answer.find("["):answer.rfind("]") + 1]
  if _PAIR.match(pair):
    return {"score": records.parse_json(pair), "reasoning": "System: output is simply a list of scores"}
  try:
    number = int(answer)
  except ValueError:
    return None
  if not 0 <= number <= 10:
    return None
  return {"score": [number], "reasoning": "System: output is simply a number"}


def repair(text: str) -> str:
  """Applies the official repair of JSON: quotes keys and values, wraps single numbers in a list."""

  def field(match: re.Match[str]) -> str:
    key, value, end = match[1], match[2].strip(), match[3]
    if _NUMBER.match(value):
      value = f"[{value}]"
    elif not _LITERAL.match(value):
      value = f'"{value}"'
    return f"{key}: {value}{end}"

  return _FIELD.sub(field, _KEY.sub(r'"\1":', text))


def scores(consistency: str, quality: str, guess: random.Random | None = None) -> dict[str, float] | None:
  """Scores of the two answers of an edit.

  Args:
    consistency: answer about semantic consistency.
    quality: answer about perceptual quality.
    guess: see `parse`.

  Returns:
    {"SC", "PQ", "O"}; None if one is malformed. Scores that are no numbers are malformed: the official
    code fails on them and asks again.
  """
  smallest = []
  for answer in (consistency, quality):
    value = parse(answer, guess)
    numbers = value.get("score") if isinstance(value, Mapping) else None
    if not isinstance(numbers, list) or not numbers or not all(_is_number(x) for x in numbers):
      return None
    smallest.append(min(numbers))
  if smallest[0] * smallest[1] < 0:
    return None
  return {"SC": smallest[0], "PQ": smallest[1], "O": math.sqrt(smallest[0] * smallest[1])}


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
