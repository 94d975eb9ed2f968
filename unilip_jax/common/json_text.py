"""JSON of data and weights: an object that has a name twice is refused. Python keeps the last."""

import collections
import json
from typing import Any


def loads(text: str | bytes) -> Any:
  """Parses JSON.

  Raises:
    ValueError: for text that is none, nesting without end, or an object that has a name twice.
  """
  try:
    return json.loads(text, object_pairs_hook=_unique)
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error


def doubled(pairs: list[tuple[str, Any]]) -> str:
  """Returns a message with the first name that the pairs of an object have twice; "" without one."""
  if len(dict(pairs)) == len(pairs):
    return ""
  counts = collections.Counter(name for name, _ in pairs)
  return next(f"repeated: {name!r} is there twice" for name, count in counts.items() if count > 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if problem := doubled(pairs):
    raise ValueError(problem)
  return dict(pairs)
