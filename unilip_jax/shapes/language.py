"""Words that captions, edits and questions share: places, relations, numbers and references.

A reference such as "the red circle" fits exactly one object of a scene and is as short as possible.
"""

from collections.abc import Sequence
import pathlib

from unilip_jax.shapes import scene as scene_lib

TOKENIZER = str(pathlib.Path(__file__).with_name("tokenizer.json"))
PLACES = (
    ("top left", "top centre", "top right"),
    ("middle left", "centre", "middle right"),
    ("bottom left", "bottom centre", "bottom right"))
# Words that begin a clause of a caption: a clause is about one object, the background, or one side of a
# relation ("left of a square").
CLAUSE_STARTS = (",", " and", " on", " of", " above", " below")
MAX_CLAUSES = 6  # four objects, the background, and one more
NUMBERS = ("zero", "one", "two", "three", "four")


def place(row: int, column: int) -> str:
  """Names a cell: "top left"."""
  return PLACES[row][column]


def indefinite(words: str) -> str:
  """Adds the article: "a circle", "an orange square"."""
  return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(words: str) -> str:
  """Forms the plural: "circles", "crosses"."""
  return f"{words}es" if words.endswith("s") else f"{words}s"


def noun(block: scene_lib.Block, named: Sequence[str]) -> str:
  """Names an object without article: "red circle", or "red object" if the shape is not named.

  Args:
    block: the object.
    named: attributes to name, of "size", "colour" and "shape".
  """
  words = [getattr(block, a) for a in ("size", "colour", "shape") if a in named]
  return " ".join(words if "shape" in named else [*words, "object"])


def describe(scene: scene_lib.Scene) -> str:
  """Describes a scene in full: size, colour, shape and place of every object, and the background."""
  parts = [f"{indefinite(noun(b, ('size', 'colour', 'shape')))} at the {place(b.row, b.column)}"
           for b in scene.blocks]
  objects = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
  return f"{objects} on a {scene.background} background"


def refer(
    block: scene_lib.Block, blocks: Sequence[scene_lib.Block],
    named: Sequence[str] = ("colour", "shape"), more: Sequence[str] = ("size", "place")
) -> str | None:
  """Makes a reference that fits one object only.

  Args:
    block: the object, one of `blocks`.
    blocks: all objects of the scene.
    named: attributes that are always named.
    more: what may be added if those fit several objects: the size, otherwise the place.

  Returns:
    "the red circle", "the large red circle" or "the red circle at the top left"; None if no allowed
    reference is unique.
  """
  for attributes in [named, *([("size", *named)] if "size" in more else [])]:
    if sum(all(getattr(b, a) == getattr(block, a) for a in attributes) for b in blocks) == 1:
      return f"the {noun(block, attributes)}"
  if "place" in more:
    return f"the {noun(block, named)} at the {place(block.row, block.column)}"
  return None


def relations(a: scene_lib.Block, b: scene_lib.Block) -> list[str]:
  """Relations of a to b by their cells: one, or two if the objects are diagonal to each other."""
  holds = {"left of": a.column < b.column, "right of": a.column > b.column,
           "above": a.row < b.row, "below": a.row > b.row}
  return [relation for relation, true in holds.items() if true]
