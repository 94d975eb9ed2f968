"""Wishes keep the words that they put, and fit into the prompts of the stage that learns them."""

from configs import gen3
from unilip_jax.blocks import scene, wishes, write
from unilip_jax.data import text


def test_ways_are_taken_in_turn_and_keep_the_words():
  made = [wishes.wish("a red circle", wishes.PROMPTS, i) for i in range(2 * len(wishes.PROMPTS))]
  assert len(set(made)) == len(wishes.PROMPTS)
  assert made[:len(wishes.PROMPTS)] == made[len(wishes.PROMPTS):]
  assert all("a red circle" in one and one != "a red circle" for one in made)


def test_no_wish_is_cut():
  config, layout = gen3.get_config("tiny"), text.Text("blocks")
  for i in range(500):
    asked = write.scene_sample(0, i, "train", scene.SIZES, as_wish=True)["txt"].decode()
    instruction = write.sample_edit(0, i, "train", as_wish=True).instruction
    assert layout.generation(asked, 200)[1].sum() <= config.text.t2i_length
    assert layout.editing(instruction, config.text.image_slots, 200)[1].sum() <= config.text.edit_length
