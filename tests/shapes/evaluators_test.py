"""Automatic scores: a perfect model gets everything right, a blank image nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from tests.evals import fakes
from unilip_jax.data import text as text_lib
from unilip_jax.evals import base
from unilip_jax.shapes import (
  captions,
  edits,
  evaluators,
  paraphrases,
  questions,
  render,
  scene,
  tars,
)
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base

_COUNT = 12
_TEXT = text_lib.Text("shapes")


def _config(**fields):
  stage = fields.pop("stage", "gen2")
  return micro.text_config(stage, **dict(
      eval__max_examples=_COUNT, eval__batch_size=8, image_size=112) | fields)


def _scene_for(text, split):
  """A scene that fits the caption."""
  for category in captions.CATEGORIES:
    for one in captions.prompts(category, _COUNT, 0, split):
      if one.text == text:
        return next(s for i in range(10_000) if captions.fits(
            one, s := captions.sample_scene(0, i, split)))
  raise AssertionError(text)


class _Sampler:
  """Replaces sampling.sampler.Sampler: paints each image from its prompt and the image to edit."""

  def __init__(self, paint):
    self._paint, self.calls, self.sizes = paint, [], set()

  def generate(self, params, prompts, options, *, seed, first, size):
    self.sizes.add(size)
    return self.edit(params, [None] * len(prompts), prompts, options, seed=seed, first=first)

  def edit(self, params, images, prompts, options, *, seed, first):
    del params
    self.calls.append((prompts, options, seed, first))
    return [self._paint(image, prompt) for image, prompt in zip(images, prompts)]


def _generator(sampler):
  return fakes.task_of(tasks_base.GeneratesImages, make_sampler=lambda batch_size, mesh: sampler)


def _painter(paint):
  """A task whose samples are `paint(image or None, prompt) -> uint8[112, 112, 3]`."""
  return _generator(_Sampler(paint))


def _blank(image, prompt):
  del image, prompt
  return np.full((112, 112, 3), 238, np.uint8)


def _reconstructor(reconstruct):
  return fakes.task_of(tasks_base.ReconstructsImages, reconstruct=reconstruct)


def _evaluator(row, task, **fields):
  mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
  return evaluators.make_evaluator(base.read_row(row), fakes.context(_config(**fields), task, mesh))


def _run(protocol, task, split="test", options=None, **fields):
  return _evaluator(("x", protocol, "shapes", split, options or {}), task, **fields)({})


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_a_perfect_generator_scores_one(split):
  scores = _run("t2i", _painter(lambda image, prompt: render.render(_scene_for(prompt, split))), split)
  assert scores["x/score"] == 1.0
  assert scores["x/count"] == _COUNT
  assert {k.rpartition("/")[2] for k in scores if k.startswith("x/score/")} == set(
      captions.CATEGORIES)


def test_images_of_a_canvas_are_made_and_read_in_its_shape():
  wide = {"canvases": ("wide",)}
  sampler = _Sampler(lambda image, prompt: render.render(_scene_for(prompt, "test"), canvas="wide"))
  assert _run("t2i", _generator(sampler), options=wide)["x/score"] == 1.0
  assert sampler.sizes == {(84, 140)}
  scores = _run("scenes", _reconstructor(lambda params, pixels: pixels), stage="tiny_mllm", options=wide)
  assert scores["x/exact"] == 1.0
  shapes = []
  note = lambda image, prompt: shapes.append(image.shape) or _blank(image, prompt)
  _run("edits", _painter(note), options=wide)
  assert set(shapes) == {(84, 140, 3)}


def test_a_blank_image_fits_no_prompt():
  scores = _run("t2i", _painter(_blank))
  assert scores["x/score"] == 0.0
  assert scores["x/missed_count"] == 1.0  # it is clear and has no object
  assert sum(scores[f"x/missed_{d}"] for d in captions.DEMANDS) == 1.0


@pytest.mark.parametrize("size", [112, 128])
def test_a_perfect_reconstruction_shows_the_same_scene(size):
  scores = _run("scenes", _reconstructor(lambda params, pixels: pixels), stage="tiny_mllm", image_size=size)
  assert scores["x/exact"] == 1.0
  assert "x/exact/1 object" in scores
  grey = lambda params, pixels: jnp.full_like(pixels, 238)
  assert _run("scenes", _reconstructor(grey), stage="tiny_mllm")["x/exact"] == 0.0


def _by_instruction(split):
  samples = [tars.sample_edit(0, i, split) for i in range(_COUNT)]
  return {(e.instruction, render.render(e.source).tobytes()): e for e in samples}


def _editor(scene_of):
  table = _by_instruction("test")
  return _painter(lambda image, prompt: render.render(scene_of(table[prompt, image.tobytes()])))


def test_a_perfect_editor_succeeds_and_preserves_the_rest():
  scores = _run("edits", _editor(lambda edit: edit.target))
  assert scores["x/success"] == scores["x/preserved"] == scores["x/success_and_preserved"] == 1.0
  assert {k.rpartition("/")[2] for k in scores if k.startswith("x/success/")} == set(edits.EDITS)


def test_the_unchanged_image_preserves_everything_and_edits_nothing():
  scores = _run("edits", _editor(lambda edit: edit.source))
  assert scores["x/success"] == 0.0
  assert scores["x/preserved"] == 1.0


@pytest.mark.parametrize(("protocol", "ways"), [("t2i", paraphrases.PROMPTS), ("edits", paraphrases.EDITS)])
def test_paraphrased_texts_use_every_template_and_keep_the_caption(protocol, ways):
  sampler = _Sampler(_blank)
  for options in ({}, {"paraphrased": True}):
    _run(protocol, _generator(sampler), "test", options, eval__max_examples=40, eval__batch_size=40)
  (plain, *_), (paraphrased, *_) = sampler.calls
  numbers = range(40) if protocol == "t2i" else [i // len(edits.EDITS) for i in range(40)]
  assert paraphrased == [paraphrases.paraphrase(words, ways, n) for words, n in zip(plain, numbers)]
  assert {n % len(ways) for n in numbers} == set(range(len(ways)))


@pytest.mark.parametrize("protocol", ["t2i", "edits"])
def test_samples_depend_on_the_seed_and_on_their_place_in_the_set(protocol):
  sampler = _Sampler(_blank)
  for seed in (0, 7):
    _run(protocol, _generator(sampler), eval__seed=seed, sample__guidance=3.0)
  assert [(seed, first, len(prompts)) for prompts, _, seed, first in sampler.calls] == [
      (0, 0, 8), (0, 8, 4), (7, 0, 8), (7, 8, 4)]
  assert sampler.calls[0][0] == sampler.calls[2][0]  # the same prompts
  assert {options.guidance for _, options, *_ in sampler.calls} == {3.0}


@pytest.mark.parametrize("right", [True, False])
def test_answers_are_marked_per_type(right):
  answers = {}
  for i in range(_COUNT):
    one = captions.sample_scene(0, i, "test")
    rng = np.random.default_rng((0, i, 5))
    for q in questions.questions(one, rng):
      answers[q.text, render.render(one).tobytes()] = q.answer

  def reply(batch):
    out = np.full((len(batch["tokens"]), 6), _TEXT.turn_end, np.int32)
    for row, (tokens, mask, image) in enumerate(
        zip(*(np.asarray(batch[k]) for k in ("tokens", "token_mask", "cond_image")))):
      question = _TEXT.decode(tokens[mask]).partition("user")[2].rpartition("assistant")[0].strip()
      ids = _TEXT.encode(answers[question, image[0].tobytes()] if right else "zebra")[:6]
      out[row, :len(ids)] = ids
    return out, (out != _TEXT.turn_end).sum(1).astype(np.int32)

  def answer(params, batch, *, max_new_tokens, stop):
    del params
    assert (max_new_tokens, stop) == (6, _TEXT.turn_end)
    count = batch["tokens"].shape[0]
    return jax.pure_callback(reply, (jax.ShapeDtypeStruct((count, 6), jnp.int32),
                                     jax.ShapeDtypeStruct((count,), jnp.int32)), batch)

  task = fakes.task_of(tasks_base.AnswersQuestions, answer=answer, image_tokens=16)
  scores = _run("questions", task, stage="tiny_mllm")
  assert scores["x/accuracy"] == float(right)
  assert {k.rpartition("/")[2] for k in scores if k.startswith("x/accuracy/")} <= set(questions.TYPES)


@pytest.mark.parametrize(("row", "message"), [
    (("x", "t2i", "tar", "test"), "needs"), (("x", "edits", "shapes", "val"), "needs"),
    (("x", "edits", "shapes", "heldout"), "unseen"), (("x", "t2i", "blocks", "test"), "needs .'shapes'"),
    (("x", "t2i", "shapes", "test::wishes"), "needs"),
    (("x", "questions", "shapes", "test"), "cannot be scored"),
    (("x", "scenes", "shapes", "test"), "cannot be scored"),
    (("x", "t2i", "shapes", "test", {"prose": True}), "take the options paraphrased and canvases"),
    (("x", "scenes", "shapes", "test", {"paraphrased": True}), "the others none"),
    (("x", "t2i", "shapes", "test", {"canvases": ("wide", "tall")}), "give one for each row"),
    (("x", "t2i", "shapes", "test", {"canvases": ("round",)}), "choose several of square, wide, tall")])
def test_what_cannot_be_scored_is_refused(row, message):
  with pytest.raises(ValueError, match=message):
    _evaluator(row, _painter(_blank))


def test_the_splits_are_train_test_and_unseen():
  assert set(scene.SPLITS) == {"train", "test", "unseen"}
