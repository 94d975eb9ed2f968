"""Scenes are deterministic, split without overlap, and plain data."""

import itertools
import json

import pytest

from unilip_jax.shapes import scene

_COUNT = 400


@pytest.fixture(scope="module")
def splits():
  return {s: [scene.sample(0, i, s) for i in range(_COUNT)] for s in scene.SPLITS}


def test_scenes_are_a_pure_function_of_seed_and_index(splits):
  assert scene.sample(0, 5, "train") == splits["train"][5]
  assert scene.sample(1, 5, "train") != splits["train"][5]
  assert splits["train"][4] != splits["train"][5]


def test_splits_never_overlap(splits):
  for a, b in itertools.combinations(splits, 2):
    assert not set(splits[a]) & set(splits[b])
  for split, scenes in splits.items():
    assert {s.split for s in scenes} == {split}  # a property of the scene, whatever the seed


def _pairs(scenes):
  return {(b.shape, b.colour) for s in scenes for b in s.blocks}


@pytest.mark.parametrize("split", ["train", "test"])
def test_unseen_combinations_occur_in_their_own_split_only(splits, split):
  shown = _pairs(splits[split])
  assert not shown & set(scene.UNSEEN)
  assert len(shown) == len(scene.SHAPES) * len(scene.COLOURS) - len(scene.UNSEEN)


def test_every_unseen_scene_has_such_a_combination(splits):
  assert set(scene.UNSEEN) <= _pairs(splits["unseen"])
  for one in splits["unseen"]:
    assert _pairs([one]) & set(scene.UNSEEN)


def test_every_attribute_and_count_occurs(splits):
  for scenes in splits.values():
    blocks = [b for s in scenes for b in s.blocks]
    assert {len(s.blocks) for s in scenes} == {1, 2, 3, 4}
    assert {s.background for s in scenes} == set(scene.BACKGROUNDS)
    assert {b.size for b in blocks} == set(scene.SIZES)
    assert {(b.row, b.column) for b in blocks} == {(r, c) for r in range(3) for c in range(3)}


def test_sizes_may_be_restricted():
  scenes = [scene.sample(0, i, "train", sizes=("large",)) for i in range(50)]
  assert {b.size for s in scenes for b in s.blocks} == {"large"}
  assert {s.split for s in scenes} == {"train"}


def test_json_round_trip():
  one = scene.sample(3, 7, "test")
  assert scene.Scene.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_objects_share_no_cell():
  block = scene.Block(0, 0, "circle", "red", "small")
  with pytest.raises(ValueError, match="one a cell"):
    scene.Scene((block, block), "white")


@pytest.mark.parametrize(("split", "sizes", "named"), [
    ("val", scene.SIZES, "val"), ("heldout", scene.SIZES, "unseen"),
    ("train", ("huge",), "huge"), ("train", (), "sizes")])
def test_unknown_splits_and_sizes_are_refused(split, sizes, named):
  with pytest.raises(ValueError, match=named):
    scene.sample(0, 0, split, sizes=sizes)
