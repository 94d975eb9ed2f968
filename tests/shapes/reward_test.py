"""The reward of Shapes is the verifier's verdict, with partial scores in the right order."""

import dataclasses
import json

import numpy as np
import pytest

from unilip_jax.data import sources
from unilip_jax.rewards import base
from unilip_jax.shapes import captions, edits, prompts, render, reward, scene, tars

_COUNT = 60


def _records(with_edits, paraphrased=False):
  source = prompts.PromptSource(
      "train", _COUNT, with_edits=with_edits, paraphrased=paraphrased, sizes=scene.SIZES)
  return [source[i] for i in range(_COUNT)]


def _asked(kind, record):
  return base.Record(kind, record.parts["text"].decode(), json.loads(record.parts["record"]))


def test_the_scene_of_a_prompt_has_the_full_reward_and_another_one_less():
  asked = [_asked("t2i", r) for r in _records(with_edits=False)]
  scenes = [captions.sample_scene(0, i, "train", plain=False) for i in range(_COUNT)]
  images = np.stack([render.render(s) for s in scenes])
  np.testing.assert_array_equal(reward.score(images, asked), 1.0)
  other = reward.score(np.roll(images, 1, axis=0), asked)
  assert other.mean() < 0.6
  assert (other >= 0).all()
  assert reward.score(np.full((1, 112, 112, 3), 90, np.uint8), asked[:1]) == 0


def test_each_further_demand_that_is_met_adds_to_the_score():
  caption = captions.Caption("colour_attribution", "", {
      "objects": [{"colour": "red", "shape": "circle"}, {"colour": "blue", "shape": "square"}],
      "relation": None, "background": "white"})
  assert captions.demands(caption) == ["clarity", "count", "shape", "colour", "background"]
  record = base.Record("t2i", "", {"category": caption.category, "spec": caption.spec})
  right = (scene.Block(0, 0, "circle", "red", "large"), scene.Block(1, 1, "square", "blue", "large"))
  recoloured = (dataclasses.replace(right[0], colour="green"), right[1])
  reshaped = (dataclasses.replace(right[0], shape="cross"), right[1])
  scenes = [scene.Scene(right[:1], "white"), scene.Scene(reshaped, "white"),
            scene.Scene(recoloured, "white"), scene.Scene(right, "navy"), scene.Scene(right, "white")]
  scores = reward.score(np.stack([render.render(s) for s in scenes]), [record] * 5)
  np.testing.assert_allclose(scores, [0.1, 0.2, 0.3, 0.4, 1.0], rtol=1e-6)


def test_edits_score_what_is_made_and_what_is_left_unchanged():
  asked = [_asked("edit", r) for r in _records(with_edits=True)]
  targets = np.stack([render.render(prompts.edit_of(r.data).target) for r in asked])
  sources_ = np.stack([render.render(prompts.edit_of(r.data).source) for r in asked])
  np.testing.assert_array_equal(reward.score(targets, asked), 1.0)
  unchanged = reward.score(sources_, asked)
  np.testing.assert_allclose(unchanged, 0.25)  # nothing is made, all else is as it was
  edit = prompts.edit_of(asked[0].data)
  assert edits.preserved_share(edit, edit.source) == 1.0
  assert edits.preserved_share(edit, scene.Scene((), "navy" if edit.source.background != "navy" else "grey")
                               ) < 1.0


@pytest.mark.parametrize("with_edits", [False, True])
def test_prompts_are_those_of_the_split_and_pure_functions_of_their_index(with_edits):
  kind = "edit_prompt" if with_edits else "prompt"
  plain, paraphrased = _records(with_edits), _records(with_edits, paraphrased=True)
  assert _records(with_edits) == plain
  assert set(plain[0].parts) == set(sources.PARTS[kind])
  for a, b in zip(plain, paraphrased):
    assert a.parts["record"] == b.parts["record"]
    assert a.parts["text"] in b.parts["text"]
  if with_edits:
    assert plain[3].parts["text"].decode() == tars.sample_edit(0, 3, "train").instruction
