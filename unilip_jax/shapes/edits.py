"""Samples edits of scenes (an instruction, the scene before and the scene after) and scores results.

What an instruction does not name stays: a replaced object keeps its size and place, a moved object its
appearance. An edit of a scene of the train split never results in one of the test or unseen split.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from unilip_jax.shapes import language
from unilip_jax.shapes import scene as scene_lib

EDITS = ("add", "remove", "replace", "recolour", "background", "move", "two")

_Cell = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Edit:
  """One edit.

  Attributes:
    category: of EDITS.
    instruction: the sentence.
    source: the scene before.
    target: the scene after.
  """

  category: str
  instruction: str
  source: scene_lib.Scene
  target: scene_lib.Scene

  def to_json(self) -> dict[str, Any]:
    """JSON-ready form without the instruction."""
    return {"category": self.category, "source": self.source.to_json(), "target": self.target.to_json()}

  @property
  def touched(self) -> tuple[_Cell, ...]:
    """Cells (row, column) whose content changes, in reading order."""
    before, after = _cells(self.source), _cells(self.target)
    return tuple(c for c in sorted({*before, *after}) if before.get(c) != after.get(c))

  @property
  def touches_background(self) -> bool:
    """Whether the background changes."""
    return self.source.background != self.target.background


def edit(
    scene: scene_lib.Scene, category: str, rng: np.random.Generator, *,
    sizes: Sequence[str] = scene_lib.SIZES
) -> Edit | None:
  """Samples an edit of a scene.

  Args:
    scene: the source.
    category: of EDITS; "two" makes two changes of different categories in different places.
    rng: source of randomness.
    sizes: that an added object may have.

  Returns:
    An edit whose target has 1 to 4 objects, has no unseen combination unless the source has one, and
    is not in the test split if the source is in the train split; None if there is no such edit.

  Raises:
    ValueError: for another category.
  """
  if category not in EDITS:
    raise ValueError(f"unknown edit {category!r}; choose {', '.join(EDITS)}")
  for step in _STEPS[category](scene, sizes, rng):
    target = _apply(scene, step)
    if _is_allowed(scene, target):
      return Edit(category, step.text, scene, target)
  return None


def score(edit: Edit, seen: scene_lib.Scene | None) -> tuple[bool, bool | None]:
  """Scores the result of an edit.

  Args:
    edit: the edit.
    seen: the scene read from the resulting image; None if it was not readable, which fails.

  Returns:
    (success, preserved). Success: every touched cell, and the background if touched, equals the target.
    Preserved: every other cell, empty cells included, and the background if untouched, equals the source;
    None if no object is untouched, since then hardly anything can change by mistake.
  """
  touched = set(edit.touched)
  source, target = _cells(edit.source), _cells(edit.target)
  untouched = {c: b for c, b in source.items() if c not in touched}
  if seen is None:
    return False, False if untouched else None
  cells = _cells(seen)
  success = all(cells.get(c) == target.get(c) for c in touched)
  preserved = {c: b for c, b in cells.items() if c not in touched} == untouched
  if edit.touches_background:
    success = success and seen.background == edit.target.background
  else:
    preserved = preserved and seen.background == edit.source.background
  return success, preserved if untouched else None


def preserved_share(edit: Edit, seen: scene_lib.Scene) -> float:
  """Returns the share of what an edit must not change that equals the source.

  Counted are the cells outside `edit.touched`, empty ones included, and the background unless touched.
  """
  source, cells = _cells(edit.source), _cells(seen)
  kept = [cells.get(c) == source.get(c)
          for c in itertools.product(range(scene_lib.GRID), repeat=2) if c not in edit.touched]
  if not edit.touches_background:
    kept.append(seen.background == edit.source.background)
  return sum(kept) / len(kept)


@dataclasses.dataclass(frozen=True)
class _Step:
  """One change: its text, the object it refers to, the new content of cells, the new background."""

  text: str
  subject: scene_lib.Block | None
  changes: dict[_Cell, scene_lib.Block | None]
  background: str | None = None


def _add(
    scene: scene_lib.Scene, sizes: Sequence[str], rng: np.random.Generator
) -> Iterator[_Step]:
  options = itertools.product(_free(scene), scene_lib.SHAPES, scene_lib.COLOURS, sizes)
  for cell, shape, colour, size in _shuffled(options, rng):
    text = f"add a {size} {colour} {shape} at the {language.place(*cell)}"
    yield _Step(text, None, {cell: scene_lib.Block(*cell, shape, colour, size)})


def _remove(
    scene: scene_lib.Scene, sizes: Sequence[str], rng: np.random.Generator
) -> Iterator[_Step]:
  del sizes
  for block in _shuffled(scene.blocks, rng):
    text = f"remove {language.refer(block, scene.blocks)}"
    yield _Step(text, block, {(block.row, block.column): None})


def _replace(
    scene: scene_lib.Scene, sizes: Sequence[str], rng: np.random.Generator
) -> Iterator[_Step]:
  del sizes
  options = itertools.product(scene.blocks, scene_lib.SHAPES, scene_lib.COLOURS)
  for block, shape, colour in _shuffled(options, rng):
    if shape != block.shape:
      name = language.refer(block, scene.blocks)
      text = f"replace {name} with {language.indefinite(f'{colour} {shape}')}"
      new = dataclasses.replace(block, shape=shape, colour=colour)
      yield _Step(text, block, {(block.row, block.column): new})


def _recolour(
    scene: scene_lib.Scene, sizes: Sequence[str], rng: np.random.Generator
) -> Iterator[_Step]:
  del sizes
  for block, colour in _shuffled(itertools.product(scene.blocks, scene_lib.COLOURS), rng):
    if colour != block.colour:
      text = f"make {language.refer(block, scene.blocks)} {colour}"
      new = dataclasses.replace(block, colour=colour)
      yield _Step(text, block, {(block.row, block.column): new})


def _background(
    scene: scene_lib.Scene, sizes: Sequence[str], rng: np.random.Generator
) -> Iterator[_Step]:
  del sizes
  for background in _shuffled(scene_lib.BACKGROUNDS, rng):
    if background != scene.background:
      yield _Step(f"change the background to {background}", None, {}, background)


def _move(
    scene: scene_lib.Scene, sizes: Sequence[str], rng: np.random.Generator
) -> Iterator[_Step]:
  del sizes
  for block, cell in _shuffled(itertools.product(scene.blocks, _free(scene)), rng):
    name = language.refer(block, scene.blocks)
    moved = dataclasses.replace(block, row=cell[0], column=cell[1])
    yield _Step(f"move {name} to the {language.place(*cell)}", block,
                {(block.row, block.column): None, cell: moved})


def _two(
    scene: scene_lib.Scene, sizes: Sequence[str], rng: np.random.Generator
) -> Iterator[_Step]:
  """Two changes in different places; the second's reference is the same before and after the first."""
  for a, b in _shuffled(itertools.permutations(EDITS[:-1], 2), rng):
    for first in _STEPS[a](scene, sizes, rng):
      between = _apply(scene, first)
      for second in _STEPS[b](between, sizes, rng):
        if first.changes.keys() & second.changes.keys():
          continue
        subject = second.subject
        if subject is not None and (
            language.refer(subject, scene.blocks) != language.refer(subject, between.blocks)):
          continue
        yield _Step(f"{first.text} and {second.text}", None, {**first.changes, **second.changes},
                    first.background or second.background)


_STEPS: dict[str, Callable[..., Iterator[_Step]]] = {
    "add": _add, "remove": _remove, "replace": _replace, "recolour": _recolour,
    "background": _background, "move": _move, "two": _two}


def _apply(scene: scene_lib.Scene, step: _Step) -> scene_lib.Scene:
  cells = {**_cells(scene), **step.changes}
  blocks = tuple(sorted(b for b in cells.values() if b is not None))
  return scene_lib.Scene(blocks, step.background or scene.background)


def _is_allowed(source: scene_lib.Scene, target: scene_lib.Scene) -> bool:
  if not 1 <= len(target.blocks) <= scene_lib.MAX_OBJECTS:
    return False
  refused = {"train": ("test", "unseen"), "test": ("unseen",), "unseen": ()}
  return target.split not in refused[source.split]


def _cells(scene: scene_lib.Scene) -> dict[_Cell, scene_lib.Block]:
  return {(b.row, b.column): b for b in scene.blocks}


def _free(scene: scene_lib.Scene) -> list[_Cell]:
  occupied = _cells(scene)
  return [c for c in itertools.product(range(scene_lib.GRID), repeat=2) if c not in occupied]


def _shuffled(options: Iterable[Any], rng: np.random.Generator) -> Iterator[Any]:
  options = list(options)
  return (options[i] for i in rng.permutation(len(options)))
