"""Words that captions, edits and questions share: places, relations, numbers, and references.

A reference such as "the red circle" singles one object out; it says more only where it must.
"""

from collections.abc import Sequence
import pathlib

from unilip_jax.shapes import scene as scene_lib

TOKENIZER = str(pathlib.Path(__file__).with_name("tokenizer.json"))
PLACES = (
    ("top left", "top centre", "top right"),
    ("middle left", "centre", "middle right"),
    ("bottom left", "bottom centre", "bottom right"))
# Words that open a clause of a caption: what stands between two of them speaks of one object, of the
# background, or of one side of a relation ("left of a square").
CLAUSE_STARTS = (",", " and", " on", " of", " above", " below")
MAX_CLAUSES = 6  # four objects, the background, and one to spare
NUMBERS = ("zero", "one", "two", "three", "four")


def place(row: int, column: int) -> str:
  """The name of a cell."""
  return PLACES[row][column]


def indefinite(words: str) -> str:
  """"a circle", "an orange square"."""
  return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(words: str) -> str:
  """"circles", "crosses"."""
  return f"{words}es" if words.endswith("s") else f"{words}s"


def noun(block: scene_lib.Block, named: Sequence[str]) -> str:
  """An object without article: "red circle", or "red object" where the shape is not named.

  Args:
    block: the object.
    named: attributes to name, of "size", "colour" and "shape".
  """
  words = [getattr(block, a) for a in ("size", "colour", "shape") if a in named]
  return " ".join(words if "shape" in named else [*words, "object"])


def describe(scene: scene_lib.Scene) -> str:
  """A full account: every object with size, colour, shape and place, and the background."""
  parts = [f"{indefinite(noun(b, ('size', 'colour', 'shape')))} at the {place(b.row, b.column)}"
           for b in scene.blocks]
  listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
  return f"{listed} on a {scene.background} background"


def refer(
    block: scene_lib.Block, blocks: Sequence[scene_lib.Block],
    named: Sequence[str] = ("colour", "shape"), more: Sequence[str] = ("size", "place")
) -> str | None:
  """A reference that fits one object only.

  Args:
    block: the object meant, one of `blocks`.
    blocks: all objects of the scene.
    named: attributes that are named in any case.
    more: what may be said in addition where those fit several objects: the size, else the place.

  Returns:
    "the red circle", "the large red circle" or "the red circle at the top left"; None where nothing
    allowed tells the object from the others.
  """
  for attributes in [named, *([("size", *named)] if "size" in more else [])]:
    if sum(all(getattr(b, a) == getattr(block, a) for a in attributes) for b in blocks) == 1:
      return f"the {noun(block, attributes)}"
  if "place" in more:
    return f"the {noun(block, named)} at the {place(block.row, block.column)}"
  return None


def relations(a: scene_lib.Block, b: scene_lib.Block) -> list[str]:
  """What holds for a towards b, by cells: one relation, or two where they stand diagonally."""
  holds = {"left of": a.column < b.column, "right of": a.column > b.column,
           "above": a.row < b.row, "below": a.row > b.row}
  return [relation for relation, true in holds.items() if true]
