"""Wishes keep the words that they put, and fit into the prompts of the stage that learns them."""

from unilip_jax.configs import gen3
from unilip_jax.data import text
from unilip_jax.shapes import paraphrases, scene, tars


def test_ways_are_taken_in_turn_and_keep_the_words():
  made = [paraphrases.paraphrase("a red circle", paraphrases.PROMPTS, i)
          for i in range(2 * len(paraphrases.PROMPTS))]
  assert len(set(made)) == len(paraphrases.PROMPTS)
  assert made[:len(paraphrases.PROMPTS)] == made[len(paraphrases.PROMPTS):]
  assert all("a red circle" in one and one != "a red circle" for one in made)


def test_no_wish_is_cut():
  config, layout = gen3.get_config("tiny"), text.Text("shapes")
  for i in range(500):
    asked = tars.scene_sample(0, i, "train", scene.SIZES, paraphrased=True)["txt"].decode()
    instruction = tars.sample_edit(0, i, "train", paraphrased=True).instruction
    assert layout.generation(asked, 200)[1].sum() <= config.text.t2i_length
    assert layout.editing(instruction, 16, 200)[1].sum() <= config.text.edit_length
