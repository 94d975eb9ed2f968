"""Samples scenes of the Shapes world deterministically: a few objects on a 3×3 grid.

A scene is plain data, which captions, edits, questions and the verifier share. Train and test never share
a scene: a hash of its canonical form decides its split. Four combinations of shape and colour occur only
in a third split, "unseen", which tests how a model generalises to new combinations (a compositional
split).
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
  """One object of a scene.

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
      raise ValueError(f"objects must be in reading order, one a cell: {cells}")

  @property
  def is_unseen(self) -> bool:
    """Whether an object has a combination that occurs neither in train nor in test."""
    return any((b.shape, b.colour) in UNSEEN for b in self.blocks)

  @property
  def split(self) -> str:
    """"unseen" if `is_unseen`; of the other scenes a tenth is "test" and the rest "train"."""
    if self.is_unseen:
      return "unseen"
    digest = hashlib.sha256(repr(self.to_json()).encode()).digest()
    return "test" if int.from_bytes(digest[:4], "little") / 2**32 < _TEST_SHARE else "train"

  def to_json(self) -> dict[str, Any]:
    """JSON-ready form. The split is a hash of it, so its keys must never change."""
    return {"background": self.background,
            "blocks": [dataclasses.asdict(b) for b in self.blocks]}

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> "Scene":
    """Reads what `to_json` returns."""
    return cls(tuple(Block(**b) for b in values["blocks"]), values["background"])


def sample(seed: int, index: int, split: str, *, sizes: Sequence[str] = SIZES) -> Scene:
  """Samples the scene at `index` of a split: a pure function of its arguments.

  Args:
    seed: of the data set.
    index: of the scene, from 0.
    split: of SPLITS.
    sizes: of the objects, of SIZES; ("large",) is easier, since shapes are clearer.

  Raises:
    ValueError: for another split or an unknown size.
  """
  check(split, sizes)
  rng = np.random.default_rng((seed, SPLITS.index(split), index))
  while True:
    scene = _sample(rng, sizes)
    if scene.split == split:
      return scene


def check(split: str, sizes: Sequence[str] = SIZES) -> None:
  """Checks the name of a split, and sizes.

  Raises:
    ValueError: for an unknown split, an unknown size, or no sizes.
  """
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}; choose {', '.join(SPLITS)}")
  if not sizes or not set(sizes) <= set(SIZES):
    raise ValueError(f"sizes {tuple(sizes)}; choose from {', '.join(SIZES)}")


def pick(items: Sequence[Any], rng: np.random.Generator) -> Any:
  """Samples one of `items`, all with equal probability."""
  return items[int(rng.integers(len(items)))]


def _sample(rng: np.random.Generator, sizes: Sequence[str]) -> Scene:
  count = int(rng.integers(1, MAX_OBJECTS + 1))
  cells = np.sort(rng.choice(GRID * GRID, size=count, replace=False))
  blocks = tuple(
      Block(int(cell) // GRID, int(cell) % GRID, pick(SHAPES, rng), pick(COLOURS, rng), pick(sizes, rng))
      for cell in cells)
  return Scene(blocks, pick(BACKGROUNDS, rng))
