"""Captions fit the scenes they describe and no others; scenes and prompts stay in their split."""

import collections
import dataclasses
import json
import time

import numpy as np
import pytest

from unilip_jax.shapes import captions, language, scene

_VALUES = {"shape": scene.SHAPES, "colour": scene.COLOURS, "size": scene.SIZES}


def _block(row, column, shape, colour="red", size="large"):
  return scene.Block(row, column, shape, colour, size)


def _scene(*blocks, background="white"):
  return scene.Scene(tuple(sorted(blocks)), background)


def _changed(one, index, **values):
  blocks = list(one.blocks)
  blocks[index] = dataclasses.replace(blocks[index], **values)
  return scene.Scene(tuple(blocks), one.background)


def _texts(one):
  return {c.text for c in captions.captions_of(one)}


@pytest.fixture(scope="module")
def scenes():
  return [captions.sample_scene(0, i, s) for s in scene.SPLITS for i in range(150)]


@pytest.fixture(scope="module")
def pairs(scenes):
  rng = np.random.default_rng(0)
  return [(one, c) for one in scenes for c in {
      c.text: c for c in [*captions.captions_of(one), captions.caption(one, rng)]}.values()]


def test_every_caption_of_a_scene_fits_it(pairs):
  assert {c.category for _, c in pairs} == {*captions.CATEGORIES, "description"}
  for one, caption in pairs:
    assert captions.fits(caption, one)
    assert json.loads(json.dumps(caption.spec)) == caption.spec


def test_a_named_attribute_decides_and_an_unnamed_one_does_not(pairs):
  for one, caption in pairs:
    named = caption.spec["objects"][0].keys()
    for index, block in enumerate(one.blocks):
      for attribute, values in _VALUES.items():
        for value in set(values) - {getattr(block, attribute)}:
          other = _changed(one, index, **{attribute: value})
          assert captions.fits(caption, other) == (attribute not in named)


def test_what_is_missed_is_the_first_demand_that_is_not_met():
  caption = captions.Caption("position", "a red circle left of a square on a navy background", {
      "objects": [{"colour": "red", "shape": "circle"}, {"shape": "square"}],
      "relation": "left of", "background": "navy"})
  circle, square = _block(0, 0, "circle"), _block(0, 2, "square", "blue")
  fault = lambda *blocks, on="navy": captions.missed(caption, _scene(*blocks, background=on))
  assert fault(circle, square) is None
  assert fault(circle, square, on="grey") == "background"
  moved = dataclasses.replace(circle, row=1, column=2)
  assert fault(moved, square, on="grey") == "relation"
  assert fault(dataclasses.replace(moved, colour="green"), square) == "colour"
  assert fault(circle, dataclasses.replace(square, shape="circle")) == "shape"
  assert fault(circle) == "count"
  assert captions.missed(caption, None) == "clarity"


def test_a_description_misses_sizes_and_places_too():
  one = _scene(_block(0, 0, "circle"), _block(1, 1, "square"), _block(2, 2, "square"))
  caption = captions.caption(one, np.random.default_rng(0))
  assert captions.missed(caption, _changed(one, 0, size="small")) == "size"
  assert captions.missed(caption, _changed(one, 2, column=1)) == "place"


def test_a_background_counts_when_it_is_named(pairs):
  for one, caption in pairs:
    other = scene.Scene(one.blocks, next(b for b in scene.BACKGROUNDS if b != one.background))
    assert captions.fits(caption, other) == ("background" not in caption.text)


def test_one_object_more_or_fewer_never_fits(pairs):
  for one, caption in pairs:
    free = next((r, c) for r in range(3) for c in range(3)
                if (r, c) not in {(b.row, b.column) for b in one.blocks})
    copy = dataclasses.replace(one.blocks[0], row=free[0], column=free[1])
    assert not captions.fits(caption, _scene(*one.blocks, copy, background=one.background))
    assert not captions.fits(caption, scene.Scene(one.blocks[1:], one.background))
    assert not captions.fits(caption, None)


def test_a_relation_turns_with_the_objects(pairs):
  positions = [(one, c) for one, c in pairs if c.category == "position"]
  assert positions
  for one, caption in positions:
    a, b = one.blocks
    swapped = _scene(dataclasses.replace(a, row=b.row, column=b.column),
                     dataclasses.replace(b, row=a.row, column=a.column),
                     background=one.background)
    assert not captions.fits(caption, swapped)


def test_one_object_is_told_alone_and_with_its_colour():
  assert _texts(_scene(_block(1, 1, "square", "orange"), background="navy")) == {
      "a square", "an orange square", "a square on a navy background",
      "an orange square on a navy background"}


def test_two_objects_are_told_in_both_orders_and_by_every_relation():
  one = _scene(_block(0, 2, "circle", "red"), _block(2, 0, "cross", "orange"))
  plain = {"a circle and a cross", "a cross and a circle",
           "a circle right of a cross", "a circle above a cross",
           "a cross left of a circle", "a cross below a circle",
           "a red circle and an orange cross", "an orange cross and a red circle"}
  assert _texts(one) == plain | {f"{t} on a white background" for t in plain}


def test_objects_in_line_have_one_relation_and_one_colour_is_not_told_apart():
  one = _scene(_block(1, 0, "circle"), _block(1, 2, "square"))
  assert {t for t in _texts(one) if "background" not in t} == {
      "a circle and a square", "a square and a circle",
      "a circle left of a square", "a square right of a circle"}


def test_objects_of_one_shape_are_counted_and_nothing_else_may_be_there():
  crosses = [_block(0, c, "cross", colour) for c, colour in enumerate(("red", "blue", "blue"))]
  assert _texts(_scene(*crosses)) == {"three crosses", "three crosses on a white background"}
  three = captions.captions_of(_scene(*crosses))[0]
  assert not captions.fits(three, _scene(*crosses, _block(2, 2, "square")))
  assert not captions.fits(three, _scene(*crosses, _block(2, 2, "cross")))


def test_mixed_scenes_fall_back_to_the_description():
  one = _scene(_block(0, 0, "circle"), _block(1, 1, "square"), _block(2, 2, "square"))
  assert captions.captions_of(one) == []
  caption = captions.caption(one, np.random.default_rng(0))
  assert (caption.category, caption.text) == ("description", language.describe(one))
  assert captions.fits(caption, one)
  moved = _scene(_block(0, 0, "circle"), _block(1, 1, "square"), _block(2, 1, "square"))
  assert not captions.fits(caption, moved)  # it names the places too


def test_a_description_names_every_object_its_place_and_the_background():
  one = _scene(_block(0, 0, "circle", "red", "large"), _block(2, 1, "square", "orange", "small"),
               background="grey")
  assert language.describe(one) == (
      "a large red circle at the top left and a small orange square at the bottom centre on a grey "
      "background")


def test_captions_are_sampled_from_every_category_that_fits():
  one = _scene(_block(0, 2, "circle", "red"), _block(2, 0, "cross", "orange"))
  rng = np.random.default_rng(0)
  samples = collections.Counter(captions.caption(one, rng).category for _ in range(600))
  assert set(samples) == {"two_objects", "position", "colour_attribution", "description"}
  assert min(samples.values()) > 100


@pytest.mark.parametrize("split", scene.SPLITS)
def test_sampled_scenes_keep_to_their_split_and_suit_every_category(split):
  samples = [captions.sample_scene(0, i, split) for i in range(500)]
  assert samples[7] == captions.sample_scene(0, 7, split)
  assert samples[7] != captions.sample_scene(1, 7, split)
  assert {s.split for s in samples} == {split}
  shares = collections.Counter(
      category for s in samples for category in {c.category for c in captions.captions_of(s)})
  assert min(shares[c] for c in captions.CATEGORIES) > 50
  assert sum(not captions.captions_of(s) for s in samples) > 15
  assert {len(s.blocks) for s in samples} == {1, 2, 3, 4}
  cells = collections.Counter((b.row, b.column) for s in samples for b in s.blocks)
  assert len(cells) == 9
  assert max(cells.values()) < 2 * min(cells.values())


def test_sampling_is_fast():
  start = time.process_time()
  for i in range(200):
    captions.sample_scene(1, i, "test")  # the rarest split
  assert (time.process_time() - start) / 200 < 2e-3


def test_the_easy_world_has_large_objects_only():
  samples = [captions.sample_scene(0, i, "train", ("large",)) for i in range(50)]
  assert {b.size for s in samples for b in s.blocks} == {"large"}


@pytest.mark.parametrize("category", captions.CATEGORIES)
@pytest.mark.parametrize("split", scene.SPLITS)
def test_prompts_are_a_pure_function_and_speak_for_their_split(category, split):
  prompts = captions.prompts(category, 40, 0, split)
  assert prompts[:10] == captions.prompts(category, 10, 0, split)
  assert {p.category for p in prompts} == {category}
  assert len(prompts) == 40
  few = category == "single_object" or (category, split) == ("colours", "unseen")
  assert len({p.text for p in prompts}) == (20 if few else 40)  # 4 nouns, 4 backgrounds or none
  if "colour" not in category:
    return
  named = [{(o["shape"], o["colour"]) for o in p.spec["objects"]} for p in prompts]
  for pairs in named:
    assert bool(pairs & set(scene.UNSEEN)) == (split == "unseen")


def test_prompts_of_another_seed_differ():
  one, other = (captions.prompts("colour_attribution", 20, seed, "test") for seed in (0, 1))
  assert one != other


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="val"):
    captions.sample_scene(0, 0, "val")
  with pytest.raises(ValueError, match="huge"):
    captions.sample_scene(0, 0, "train", ("huge",))
  with pytest.raises(ValueError, match="val"):
    captions.prompts("counting", 1, 0, "val")
  with pytest.raises(ValueError, match="shapes"):
    captions.prompts("shapes", 1, 0, "test")


def test_references_say_no_more_than_they_must():
  blocks = _scene(_block(0, 0, "circle", "red", "small"), _block(0, 1, "circle", "red", "large"),
                  _block(1, 1, "circle", "blue"), _block(2, 1, "cross", "red", "small"),
                  _block(2, 2, "cross", "red", "small")).blocks
  refer = lambda i, **kwargs: language.refer(blocks[i], blocks, **kwargs)
  assert refer(2) == "the blue circle"
  assert refer(0) == "the small red circle"
  assert refer(4) == "the red cross at the bottom right"
  assert refer(2, named=("colour",)) == "the blue object"
  assert refer(0, named=("shape",)) == "the small circle"
  assert refer(4, more=("size",)) is None
  assert refer(0, more=()) is None
