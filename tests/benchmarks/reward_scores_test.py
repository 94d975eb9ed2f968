"""Reward training is scored by readers that agree on true scenes, and by the diversity of scenes."""

import json

import numpy as np
import pytest

from benchmarks import reward_scores
from unilip_jax.shapes import captions, render, scene, tars


class _PerfectModel:
  """Answers with images that fit what is asked."""

  def __init__(self, count):
    self._count = count

  def generate(self, texts, **options):
    assert options == {"steps": 4}
    for split in ("test", "unseen"):
      asked = captions.prompts_in_turn(self._count, 0, split)
      if texts == [c.text for c in asked]:
        break
    else:  # paraphrased
      asked = captions.prompts_in_turn(self._count, 0, "test")
    return [render.render(_fitting(caption)) for caption in asked]

  def edit(self, images, instructions, **options):
    assert len(images) == len(instructions) == self._count
    assert options == {"steps": 4}
    return images  # nothing is edited


def _fitting(caption):
  return next(s for split in ("test", "unseen") for i in range(2000)
              if captions.fits(caption, s := captions.sample_scene(0, i, split)))


def test_every_reader_finds_perfect_images_right_and_unedited_ones_wrong():
  scores = reward_scores.measure(_PerfectModel(7), {"steps": 4}, 7)
  for reader in reward_scores.READERS:
    for prompts in ("prompts", "paraphrases", "unseen_prompts"):
      assert scores[f"{prompts}/{reader}"] == 1.0
    for edits in ("edits", "edit_paraphrases", "unseen_edits"):
      assert scores[f"{edits}/{reader}"] == 0.0


def test_readers_change_the_pixels_but_not_the_input():
  pixels = render.render(tars.sample_edit(0, 0, "test").source)
  before = pixels.copy()
  changed = {name: change(pixels) for name, change in reward_scores.READERS.items()}
  np.testing.assert_array_equal(pixels, before)
  assert changed["168px"].shape == (168, 168, 3)
  for name in ("jpeg75", "noise2percent"):
    assert changed[name].shape == pixels.shape
    assert not np.array_equal(changed[name], pixels)


def test_diversity_is_none_for_one_scene_and_counts_attributes_that_differ():
  block = scene.Block(0, 0, "circle", "red", "small")
  same = scene.Scene((block,), "white")
  other = scene.Scene((scene.Block(2, 0, "circle", "red", "large"),), "grey")
  assert reward_scores.summarize([same] * 4) == {"clear": 1.0, "distinct": 0.25, "entropy": 0.0}
  # Background, row and size take two values each with equal shares: a bit of each.
  assert reward_scores.summarize([same, other, same, other, None, None, None, None]) == {
      "clear": 0.5, "distinct": 0.5, "entropy": pytest.approx(3.0)}
  assert reward_scores.summarize([None, None]) == {"clear": 0.0}


def test_curves_are_means_of_ten_updates(tmp_path):
  rows = [{"step": 0, "eval/t2i/score": 0.5}] + [
      {"step": i, "train/reward": 1.0, "train/reward_t2i": i / 8, "train/reward_edit": 0.5,
       "train/zero_std_share": 0.25} for i in range(1, 13)]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert reward_scores.curve(str(tmp_path)) == [
      {"step": 10, "reward_t2i": 0.6875, "reward_edit": 0.5, "zero_std_share": 0.25},
      {"step": 12, "reward_t2i": 1.4375, "reward_edit": 0.5, "zero_std_share": 0.25}]
