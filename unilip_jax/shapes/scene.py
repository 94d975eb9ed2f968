"""Scenes of the Shapes world: a few objects on a 3×3 grid, sampled deterministically.

A scene is plain data, so that captions, edits, questions and a verifier can speak of it. Train and
test never share a scene: a hash of its canonical form decides where it belongs. Four combinations of
shape and colour occur in a third split only, "unseen".
"""

from collections.abc import Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
BACKGROUNDS = ("white", "grey", "cream", "navy")
SIZES = ("small", "large")
GRID = 3  # cells per side
UNSEEN = (("circle", "purple"), ("square", "orange"), ("triangle", "blue"), ("cross", "green"))
SPLITS = ("train", "test", "unseen")

_TEST_SHARE = 0.1  # of the scenes without unseen combinations, by hash
MAX_OBJECTS = 4


@dataclasses.dataclass(frozen=True, order=True)
class Block:
  """One object.

  Attributes:
    row: 0 (top) to 2.
    column: 0 (left) to 2.
    shape: of SHAPES.
    colour: of COLOURS.
    size: of SIZES.
  """

  row: int
  column: int
  shape: str
  colour: str
  size: str


@dataclasses.dataclass(frozen=True)
class Scene:
  """Objects in reading order (row, then column), and the background."""

  blocks: tuple[Block, ...]
  background: str

  def __post_init__(self):
    cells = [(b.row, b.column) for b in self.blocks]
    if cells != sorted(set(cells)):
      raise ValueError(f"objects must stand in reading order, one a cell: {cells}")

  @property
  def is_unseen(self) -> bool:
    """Whether an object has a combination that neither training nor test shows."""
    return any((b.shape, b.colour) in UNSEEN for b in self.blocks)

  @property
  def split(self) -> str:
    """"unseen" for scenes with such a combination; a tenth of the others is "test", the rest "train"."""
    if self.is_unseen:
      return "unseen"
    digest = hashlib.sha256(repr(self.to_json()).encode()).digest()
    return "test" if int.from_bytes(digest[:4], "little") / 2**32 < _TEST_SHARE else "train"

  def to_json(self) -> dict[str, Any]:
    """JSON-ready; the split hashes it, so that its keys never change."""
    return {"background": self.background,
            "blocks": [dataclasses.asdict(b) for b in self.blocks]}

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> "Scene":
    return cls(tuple(Block(**b) for b in values["blocks"]), values["background"])


def sample(seed: int, index: int, split: str, *, sizes: Sequence[str] = SIZES) -> Scene:
  """The scene at `index` of a split: a pure function of its arguments.

  Args:
    seed: of the data set.
    index: of the scene, from 0.
    split: of SPLITS.
    sizes: of the objects, of SIZES; ("large",) is the easy world, where shapes are plainest.

  Raises:
    ValueError: for another split or an unknown size.
  """
  check(split, sizes)
  rng = np.random.default_rng((seed, SPLITS.index(split), index))
  while True:
    scene = _draw(rng, sizes)
    if scene.split == split:
      return scene


def check(split: str, sizes: Sequence[str] = SIZES) -> None:
  """Raises ValueError for an unknown split, unknown sizes or none."""
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}; choose {', '.join(SPLITS)}")
  if not sizes or not set(sizes) <= set(SIZES):
    raise ValueError(f"sizes {tuple(sizes)}; choose from {', '.join(SIZES)}")


def pick(items: Sequence[Any], rng: np.random.Generator) -> Any:
  """One of `items`, evenly."""
  return items[int(rng.integers(len(items)))]


def _draw(rng: np.random.Generator, sizes: Sequence[str]) -> Scene:
  count = int(rng.integers(1, MAX_OBJECTS + 1))
  cells = np.sort(rng.choice(GRID * GRID, size=count, replace=False))
  blocks = tuple(
      Block(int(cell) // GRID, int(cell) % GRID, pick(SHAPES, rng), pick(COLOURS, rng), pick(sizes, rng))
      for cell in cells)
  return Scene(blocks, pick(BACKGROUNDS, rng))
