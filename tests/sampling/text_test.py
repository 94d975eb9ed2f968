"""Answers equal the recorded official ones; sampling follows its distribution and its seed alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_model, golden_prompts, parity
from unilip_jax.models import qwen2, unilip
from unilip_jax.ops import image as image_ops
from unilip_jax.sampling import text

_STOP = 258


@pytest.fixture(scope="module")
def model(golden):
  return unilip.Unilip(golden_model.unilip_dims(golden), jnp.float32)


@pytest.fixture(scope="module")
def params(golden):
  return golden_model.unilip_params(golden)


def _prefill(model, params, tokens, mask, features):
  return model.answer_prefill(params, tokens, mask, golden_prompts.IMAGE_TOKEN, features)


def _answer(model, params, tokens, mask, features, **options):
  @jax.jit
  def run(params, tokens, mask, features):
    logits, cache = _prefill(model, params, tokens, mask, features)
    out, count = text.decode(
        lambda t, valid, c: model.answer_step(params, t, valid, c), logits, cache,
        stop=_STOP, **{"max_new_tokens": 8, "seed": 0} | options)
    return logits, out, count

  return run(params, tokens, mask, features)


@pytest.fixture(scope="module")
def chat(golden, model, params):
  """(recorded arrays, tokens, mask, features) of the recorded chat with UniLIP's vision weights."""
  arrays = np.load(golden / "understanding_chat.npz")
  pixels = arrays["image_u8"]
  features = model.features(params, image_ops.unit_from_pixels(pixels)[:, None])
  tokens = arrays["input_ids"].astype(np.int32)
  return arrays, tokens, np.ones(tokens.shape, bool), features


def test_greedy_chat_equals_the_recorded_tokens_and_logits(chat, model, params):
  arrays, tokens, mask, features = chat
  reference = "golden understanding_chat"
  parity.assert_parity("chat, image features", reference, features, arrays["unilip_image_features"])
  logits, out, _ = _answer(model, params, tokens, mask, features)
  np.testing.assert_array_equal(out, arrays["unilip_tokens"])
  vocabulary = arrays["unilip_logits"].shape[-1]  # InternVL's; UniLIP adds three rows
  parity.assert_parity("chat, logits", reference, logits[:, :vocabulary], arrays["unilip_logits"][:, 0])
  cache = _prefill(model, params, tokens, mask, features)[1]
  cache = qwen2.with_room(cache, 8)
  step = jax.jit(lambda t, c: model.answer_step(params, t, jnp.ones((1, 1), bool), c))
  for i in range(7):
    logits, cache = step(out[:, i:i + 1], cache)
    parity.assert_parity("chat, logits", reference, logits[:, :vocabulary],
                         arrays["unilip_logits"][:, i + 1])


def test_a_batch_of_padded_prompts_answers_as_each_alone(chat, model, params):
  _, tokens, mask, features = chat
  other = np.random.default_rng(0).integers(0, 256, (1, 40)).astype(np.int32)
  both = np.full((2, tokens.shape[1]), 256, np.int32)
  both[0], both[1, :40] = tokens[0], other[0]
  valid = np.arange(both.shape[1])[None] < np.array([[tokens.shape[1]], [40]])
  _, together, counts = _answer(model, params, both, valid, jnp.repeat(features, 2, 0))
  _, first, count = _answer(model, params, tokens, mask, features)
  _, second, _ = _answer(model, params, other, np.ones((1, 40), bool), None)
  np.testing.assert_array_equal(together, np.concatenate([first, second]))
  assert counts[0] == count[0]


def test_sampling_depends_on_seed_and_row_alone(chat, model, params):
  _, tokens, mask, features = chat
  options = dict(temperature=1.0, top_p=0.9)
  repeat = lambda x: np.repeat(np.asarray(x), 3, 0)
  _, three, _ = _answer(model, params, repeat(tokens), repeat(mask), repeat(features), **options)
  _, third, _ = _answer(model, params, tokens, mask, features, first=2, **options)
  np.testing.assert_array_equal(three[2:], third)
  assert not np.array_equal(three[0], three[1])


def test_an_answer_ends_at_the_stop_token():
  logits = jnp.eye(5)[jnp.array([3, 1])] * 10.0  # row 0 starts with 3, row 1 stops at once
  fresh = jnp.eye(5)[jnp.array([1, 4])] * 10.0
  cache = qwen2.Cache(*(jnp.zeros((1, 2, 3, 1, 1)),) * 2, jnp.ones((2, 3), bool))
  out, count = text.decode(lambda t, v, c: (fresh, c), logits, cache, max_new_tokens=4, stop=1,
                           seed=0)
  np.testing.assert_array_equal(out, [[3, 1, 1, 1], [1, 1, 1, 1]])
  np.testing.assert_array_equal(count, [1, 0])


@pytest.mark.parametrize(("tokens", "runs"), [(1, 0), (3, 2), (9, 4)])
def test_the_model_runs_once_less_than_there_are_tokens(tokens, runs):
  ran = []
  scores = jnp.eye(5)[jnp.array([0])] * 10.0

  def step(token, valid, cache):  # samples 1, 2, 3, 4; 4 stops
    jax.debug.callback(ran.append, token)
    return jnp.roll(scores, token[0, 0] + 1, axis=1), cache

  cache = qwen2.Cache(*(jnp.zeros((1, 1, 3, 1, 1)),) * 2, jnp.ones((1, 3), bool))
  out, _ = text.decode(step, scores, cache, max_new_tokens=tokens, stop=4, seed=0)
  np.testing.assert_array_equal(out[0], [0, 1, 2, 3, 4, 4, 4, 4, 4][:tokens])
  jax.effects_barrier()
  assert len(ran) == runs


def test_less_than_one_token_is_refused():
  with pytest.raises(ValueError, match="max_new_tokens=0"):
    text.decode(None, jnp.zeros((1, 5)), None, max_new_tokens=0, stop=1, seed=0)


def test_pick_follows_temperature_and_nucleus():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  keys = jax.random.split(jax.random.key(0), 4000)
  many = jnp.repeat(logits, 4000, 0)
  drawn = lambda **o: np.bincount(np.asarray(text.pick(many, keys, **o)), minlength=4) / 4000
  np.testing.assert_allclose(drawn(temperature=1.0, top_p=1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
  np.testing.assert_allclose(drawn(temperature=1.0, top_p=0.7), [0.625, 0.375, 0, 0], atol=0.03)
  np.testing.assert_allclose(drawn(temperature=1.0, top_p=0.1), [1, 0, 0, 0])
  assert text.pick(logits, keys[:1], 0.0, 1.0)[0] == 0
  hot = drawn(temperature=10.0, top_p=1.0)
  assert hot.min() > 0.15
