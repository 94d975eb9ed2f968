"""Sizes of images that are not square: (height, width) in pixels, multiples of a token's side.

Aspect-ratio buckets are the sizes that use a budget of tokens as well as their shape allows: at 448 px and
28 px per token, 256 tokens, these are 448×448, 420×476, 392×504, … and their transposes.
"""

from collections.abc import Sequence
import heapq
import math
import re
from typing import Any

Size = tuple[int, int]  # (height, width)

MAX_ASPECT = 4.0  # of the longer to the shorter edge, as in the tables of SANA and PixArt
MAX_BUDGETS = 4  # times the tokens of the model's square: the largest image that is made
_SUGGESTIONS = 3


def both_sides(size: int | Sequence[int]) -> Size:
  """Returns (height, width) of a size: an integer is the side of a square."""
  return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def aspect_buckets(image_size: int, side: int, max_aspect: float = MAX_ASPECT) -> tuple[Size, ...]:
  """Lists the sizes with at most the tokens of a square that no longer side would still have.

  Args:
    image_size: pixels per side of the square.
    side: pixels per side of one token.
    max_aspect: of the longer to the shorter edge.

  Returns:
    (height, width) each, from wide to tall; with each its transpose.
  """
  budget = (image_size // side) ** 2
  found = []
  for rows in range(1, budget + 1):
    columns = budget // rows
    if rows == budget // columns and max(rows, columns) <= max_aspect * min(rows, columns):
      found.append((rows * side, columns * side))
  return tuple(found)


def nearest(size: Size, choices: Sequence[Size]) -> int:
  """Returns the index of the choice whose ratio of sides is nearest to that of a size, by its logarithm."""
  ratio = math.log(size[0] / size[1])
  return min(range(len(choices)), key=lambda i: abs(math.log(choices[i][0] / choices[i][1]) - ratio))


def nearest_bucket(size: Size, image_size: int, side: int) -> Size:
  """Returns the one of `aspect_buckets` whose shape is nearest to a size's."""
  buckets = aspect_buckets(image_size, side)
  return buckets[nearest(size, buckets)]


def check(name: str, size: Any, image_size: int, side: int, budgets: int = MAX_BUDGETS) -> Size:
  """Checks the size of an image to be made.

  Args:
    name: of the option, for the message.
    size: (height, width).
    image_size: pixels per side of the model's square.
    side: pixels per side of one token.
    budgets: largest number of tokens, in those of the square.

  Returns:
    (height, width).

  Raises:
    ValueError: for a size that is no multiple of `side`, too large or too long; names the nearest ones.
  """
  if (not isinstance(size, (tuple, list)) or len(size) != 2
      or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)):
    raise ValueError(f"{name}={size!r}: give (height, width) in pixels")
  most = budgets * (image_size // side) ** 2
  if _fits(*(n / side for n in size), most) and not (size[0] % side or size[1] % side):
    return int(size[0]), int(size[1])
  allowed = [(h, w) for h in range(1, most + 1) for w in range(1, most // h + 1) if _fits(h, w, most)]
  near = heapq.nsmallest(
      _SUGGESTIONS, allowed, lambda s: math.dist((s[0] * side, s[1] * side), size))
  raise ValueError(
      f"{name}={size[0]}x{size[1]} (height x width): sides are multiples of {side} pixels, of at most "
      f"{most} tokens of {side}×{side} and {MAX_ASPECT:g} times as long as each other; nearest: "
      + ", ".join(f"{h * side}x{w * side}" for h, w in near))


def _fits(rows: float, columns: float, most: int) -> bool:
  return rows * columns <= most and max(rows, columns) <= MAX_ASPECT * min(rows, columns)


def parse(name: str, text: str) -> Size:
  """Parses "HEIGHTxWIDTH".

  Raises:
    ValueError: for another form.
  """
  match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text, re.ASCII)
  if match is None:
    raise ValueError(f"{name}={text!r}: give HEIGHTxWIDTH in pixels, e.g. 336x588")
  return int(match[1]), int(match[2])
