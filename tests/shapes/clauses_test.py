"""The clause encoder: words belong to their clause alone, and their order in it does not matter."""

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.data import text as text_lib
from unilip_jax.shapes import clauses, language

_TEXT = text_lib.Text("shapes")
_STARTS = tuple(_TEXT.encode(word)[0] for word in language.CLAUSE_STARTS)
_ENCODER = clauses.Clauses(512, 8, _STARTS, language.MAX_CLAUSES, jnp.float32)


def _states(*prompts):
  tokens, mask = map(np.stack, zip(*(_TEXT.generation(p, 56) for p in prompts)))
  params = _ENCODER.init(jax.random.key(0), tokens, mask)
  return _ENCODER.apply(params, tokens, mask)


def test_each_start_is_one_token():
  assert all(len(_TEXT.encode(word)) == 1 for word in language.CLAUSE_STARTS)


def test_a_clause_holds_its_own_words_alone():
  states, valid = _states(
      "a red circle at the centre and a blue square on a navy background",
      "a red circle at the centre and a green square on a navy background",
      "a circle left of a square", None)
  np.testing.assert_array_equal(valid.sum(1), [3, 3, 2, 1])
  same = np.abs(states[0] - states[1]).max(-1) == 0
  np.testing.assert_array_equal(same[:3], [True, False, True])


def test_every_object_of_a_caption_has_its_own_clause():
  full = ", ".join(["a red circle at the centre"] * 3)
  _, valid = _states(f"{full} and a blue square at the top left on a navy background")
  assert valid.sum() == 5


def test_further_clauses_belong_to_the_last():
  _, valid = _states(", ".join(["a red circle"] * 9))
  assert valid.sum() == language.MAX_CLAUSES


def test_pads_change_nothing():
  tokens, mask = _TEXT.generation("a red circle", 56)
  params = _ENCODER.init(jax.random.key(0), tokens[None], mask[None])
  short = int(mask.sum())
  padded = _ENCODER.apply(params, tokens[None], mask[None])
  short_prompt = _ENCODER.apply(params, tokens[None, :short], mask[None, :short])
  jax.tree.map(np.testing.assert_array_equal, padded, short_prompt)
