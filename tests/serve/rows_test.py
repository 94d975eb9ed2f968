"""Rows of several callers in one batch equal what UniLIP returns for each alone with the same seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax.data import text as text_lib
from unilip_jax.infer import model as model_lib
from unilip_jax.infer import rows as rows_lib
from unilip_jax.models import unilip
from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling

_OPTIONS = sampler.Options(steps=2, guidance=3.0)
_SEEDS = [3, 2**40]


@pytest.fixture(scope="module")
def rows():
  """A model of random weights, compiled without optimisations."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  dims = micro.preset().unilip
  params = unilip.Unilip(dims, jnp.float32).init(jax.random.key(0))
  jax.config.update("jax_disable_most_optimizations", before)
  model = model_lib.UniLIP(params, dims.tokenizer, dims=dims, text=text_lib.Text("shapes"), dtype="float32",
                           batch_size=2)
  return rows_lib.Rows(model, (2, 1))


def _image(seed):
  return np.random.default_rng(seed).integers(0, 256, (micro.IMAGE_SIZE,) * 2 + (3,)).astype(np.uint8)


def test_a_model_has_all_abilities_and_sorted_batch_sizes(rows):
  assert rows.abilities == ("reconstruct", "generate", "edit", "chat")
  assert (rows.batch_sizes, rows.largest) == ((1, 2), 2)


def test_images_depend_on_their_own_seed_alone(rows):
  prompts = ["a red circle", "two squares"]
  together = rows.sample(prompts, _SEEDS, _OPTIONS)
  alone = [rows.sample([p], [s], _OPTIONS)[0] for p, s in zip(prompts, _SEEDS)]
  for prompt, seed, both, one in zip(prompts, _SEEDS, together, alone):
    expected = np.asarray(rows.model.generate(prompt, steps=2, guidance=3.0, seed=seed))
    np.testing.assert_array_equal(one, expected)  # the same program
    assert np.abs(both.astype(int) - expected).max() <= 1  # of 255: a program of another batch size
  assert np.abs(together[0].astype(int) - together[1]).max() > 1


def test_an_edit_equals_unilip_with_the_same_seed(rows):
  edited, = rows.sample(["make it red"], [7], _OPTIONS, [_image(0)])
  expected = rows.model.edit(_image(0), "make it red", steps=2, guidance=3.0, seed=7)
  np.testing.assert_array_equal(edited, np.asarray(expected))


def test_answers_of_one_batch_have_their_own_seeds_and_options(rows):
  """A greedy and a sampled answer of different lengths run together."""
  options = [text_sampling.Options(11), text_sampling.Options(20, 0.9, 0.8)]
  questions = [rows.question([], ["what is this?"], o, seed=s) for o, s in zip(options, _SEEDS)]
  assert questions[0].shape == questions[1].shape
  parts = list(rows.answer(questions))
  assert len(parts) > 2  # in parts of a few tokens
  for i, (question, option) in enumerate(zip(questions, options)):
    tokens = parts[-1][0][i, :option.max_new_tokens]
    for earlier, _ in parts:
      count = min(earlier.shape[1], option.max_new_tokens)
      np.testing.assert_array_equal(earlier[i, :count], tokens[:count])
    own = tokens[:list(tokens).index(rows.stop)] if rows.stop in tokens else tokens
    expected = rows.model.chat(
        None, "what is this?", max_new_tokens=option.max_new_tokens, temperature=option.temperature,
        top_p=option.top_p, seed=question.seed)
    assert rows.decode(own).strip() == expected


def test_questions_of_an_image_have_a_shape_of_their_own(rows):
  question = rows.question([_image(0)], ["what?"], text_sampling.Options(1025), seed=0, max_tiles=1)
  tokens, tiles, room = question.shape
  assert (tiles, room) == (1, 4096)
  assert tokens >= len(question.ids)


@pytest.mark.parametrize(("tokens", "length"), [
    (1, 64), (64, 64), (65, 96), (97, 128), (129, 192), (193, 256), (32000, 32768)])
def test_conversations_have_few_lengths(tokens, length):
  assert rows_lib.padded_length(tokens) == length


def test_flops_of_an_image_grow_with_its_steps(rows):
  two, four, six = (rows.image_flops(n, editing=False) for n in (2, 4, 6))
  assert 0 < four - two == six - four
  assert rows.image_flops(2, editing=True) > two


def _few_step(rows, method):
  dims = dataclasses.replace(rows.model.dims, few_step=method)
  return model_lib.UniLIP(rows.model._params, dims.tokenizer, dims=dims, text=text_lib.Text("shapes"),
                          dtype="float32", batch_size=2)


def test_a_few_step_network_refuses_guidance_and_one_with_noise_of_its_own_is_refused(rows):
  few = rows_lib.Rows(_few_step(rows, "mean_flow"), (1,))
  few.check(sampler.Options(steps=4, guidance=1.0))
  with pytest.raises(ValueError, match="guidance=3"):
    few.check(_OPTIONS)
  with pytest.raises(ValueError, match="distilled by consistency"):
    rows_lib.Rows(_few_step(rows, "consistency"), (1,))
