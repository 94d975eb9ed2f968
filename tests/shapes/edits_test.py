"""Edits do what their instructions say, stay in their split, and score results."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest

from unilip_jax.shapes import captions, edits, language, render, scene, verify

_PLACE = "|".join(p for row in language.PLACES for p in row)
_OBJECT = f"(?:{'|'.join(scene.COLOURS)}) (?:{'|'.join(scene.SHAPES)})"
_REFERENCE = f"the ((?:small |large )?{_OBJECT}(?: at the (?:{_PLACE}))?)"
_CELLS = list(itertools.product(range(3), repeat=2))


@pytest.fixture(scope="module")
def samples():
  rng = np.random.default_rng(0)
  pairs = [edits.edit(captions.sample_scene(0, i, split), category, rng)
           for split in scene.SPLITS for i in range(120) for category in edits.EDITS]
  return [e for e in pairs if e is not None]


def _cells(one):
  return {(b.row, b.column): b for b in one.blocks}


def _scene(cells, background):
  return scene.Scene(tuple(cells[c] for c in sorted(cells)), background)


def _cell(name):
  return next(c for c in _CELLS if language.PLACES[c[0]][c[1]] == name)


def _meant(source, reference):
  """The only object that a reference fits, word by word."""
  words, _, place = reference.partition(" at the ")
  fitting = [b for b in source.blocks
             if set(words.split()) <= {b.size, b.colour, b.shape}
             and (not place or _cell(place) == (b.row, b.column))]
  assert len(fitting) == 1, reference
  return fitting[0]


def _follow(source, instruction):
  """What a literal reader makes of an instruction."""
  cells, background = _cells(source), source.background
  for part in instruction.split(" and "):
    if match := re.fullmatch(rf"add a (small|large) ({_OBJECT}) at the ({_PLACE})", part):
      size, (colour, shape), cell = match[1], match[2].split(), _cell(match[3])
      assert cell not in cells
      cells[cell] = scene.Block(*cell, shape, colour, size)
    elif match := re.fullmatch(f"remove {_REFERENCE}", part):
      block = _meant(source, match[1])
      del cells[block.row, block.column]
    elif match := re.fullmatch(f"replace {_REFERENCE} with an? ({_OBJECT})", part):
      block, (colour, shape) = _meant(source, match[1]), match[2].split()
      cells[block.row, block.column] = dataclasses.replace(block, shape=shape, colour=colour)
    elif match := re.fullmatch(f"make {_REFERENCE} ({'|'.join(scene.COLOURS)})", part):
      block = _meant(source, match[1])
      cells[block.row, block.column] = dataclasses.replace(block, colour=match[2])
    elif match := re.fullmatch(f"move {_REFERENCE} to the ({_PLACE})", part):
      block, cell = _meant(source, match[1]), _cell(match[2])
      assert cell not in cells
      del cells[block.row, block.column]
      cells[cell] = dataclasses.replace(block, row=cell[0], column=cell[1])
    else:
      background = re.fullmatch(r"change the background to (\w+)", part)[1]
  return _scene(cells, background)


def test_following_the_instruction_gives_the_target(samples):
  for one in samples:
    assert _follow(one.source, one.instruction) == one.target
    assert one.target != one.source
    assert 1 <= len(one.target.blocks) <= 4


def test_every_category_occurs_and_touches_what_it_should(samples):
  counts = collections.Counter(e.category for e in samples)
  assert set(counts) == set(edits.EDITS)
  touched = {"add": {1}, "remove": {1}, "replace": {1}, "recolour": {1}, "background": {0},
             "move": {2}, "two": {1, 2, 3}}
  for one in samples:
    assert len(one.touched) in touched[one.category]
    if one.category != "two":
      assert one.touches_background == (one.category == "background")
    before, after = _cells(one.source), _cells(one.target)
    for cell in _CELLS:
      assert (before.get(cell) != after.get(cell)) == (cell in one.touched)


def test_two_changes_are_of_many_kinds(samples):
  kinds = {tuple(part.split()[0] for part in e.instruction.split(" and "))
           for e in samples if e.category == "two"}
  assert len(kinds) > 20  # of 30 ordered pairs
  assert all(a != b for a, b in kinds)


def test_edits_never_lead_to_test_or_unseen_scenes(samples):
  ways = collections.Counter((e.source.split, e.target.split) for e in samples)
  assert not ways["train", "test"] + ways["train", "unseen"] + ways["test", "unseen"]
  assert ways["train", "train"]
  assert ways["test", "test"]
  assert ways["unseen", "unseen"]
  for one in samples:
    if one.source.split != "unseen":
      assert not any(f"{c} {s}" in one.instruction for s, c in scene.UNSEEN)


def test_the_rendered_target_is_success_and_the_source_is_not(samples):
  for one in samples[::8]:
    preserved = None if _untouched(one) == 0 else True
    assert edits.score(one, verify.verify(render.render(one.target))) == (True, preserved)
    assert edits.score(one, verify.verify(render.render(one.source))) == (False, preserved)


def _untouched(one):
  return sum(c not in one.touched for c in _cells(one.source))


def test_damage_to_an_untouched_object_is_noticed(samples):
  checked = 0
  for one in samples:
    cells = _cells(one.target)
    for cell in set(_cells(one.source)) - set(one.touched):
      other = "blue" if cells[cell].colour != "blue" else "red"
      seen = {**cells, cell: dataclasses.replace(cells[cell], colour=other)}
      assert edits.score(one, _scene(seen, one.target.background)) == (True, False)
      del seen[cell]
      assert edits.score(one, _scene(seen, one.target.background)) == (True, False)
      checked += 1
  assert checked > 300


def test_an_invented_object_is_not_preservation(samples):
  for one in samples:
    if _untouched(one):
      free = next(c for c in _CELLS if c not in {*one.touched, *_cells(one.source)})
      seen = {**_cells(one.target), free: scene.Block(*free, "cross", "red", "small")}
      assert edits.score(one, _scene(seen, one.target.background)) == (True, False)


def test_the_background_belongs_to_success_or_to_preservation(samples):
  for one in samples:
    other = next(b for b in scene.BACKGROUNDS
                 if b not in (one.source.background, one.target.background))
    success, preserved = edits.score(one, _scene(_cells(one.target), other))
    assert success == (not one.touches_background)
    if _untouched(one):
      assert preserved == one.touches_background


def test_half_an_edit_is_no_success(samples):
  for one in samples:
    for cell in one.touched:
      seen = _cells(one.target)
      seen.pop(cell, None)
      if cell in _cells(one.source):
        seen[cell] = _cells(one.source)[cell]
      assert not edits.score(one, _scene(seen, one.target.background))[0]


def test_an_unreadable_image_fails(samples):
  for one in samples:
    assert edits.score(one, None) == (False, False if _untouched(one) else None)


def test_what_cannot_be_edited_gives_none():
  rng = np.random.default_rng(0)
  single = scene.Scene((scene.Block(1, 1, "circle", "red", "large"),), "white")
  assert edits.edit(single, "remove", rng) is None
  four = scene.Scene(
      tuple(scene.Block(1 + c // 3, c % 3, "cross", "red", "large") for c in range(4)), "white")
  assert edits.edit(four, "add", rng) is None
  assert edits.edit(four, "remove", rng) is not None


def test_added_objects_have_the_requested_size():
  rng = np.random.default_rng(0)
  single = scene.Scene((scene.Block(1, 1, "circle", "red", "large"),), "white")
  for _ in range(20):
    assert "large" in edits.edit(single, "add", rng, sizes=("large",)).instruction


def test_edits_are_a_pure_function_of_the_generator():
  one = captions.sample_scene(0, 3, "train")
  sample = lambda seed: edits.edit(one, "two", np.random.default_rng(seed))
  assert sample(0) == sample(0)
  assert len({sample(seed).instruction for seed in range(10)}) > 5


def test_unknown_categories_are_refused():
  with pytest.raises(ValueError, match="rotate"):
    edits.edit(captions.sample_scene(0, 0, "train"), "rotate", np.random.default_rng(0))
