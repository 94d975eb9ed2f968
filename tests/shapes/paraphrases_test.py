"""Paraphrases contain the original text and fit into the prompts of the stage that trains on them."""

from unilip_jax.configs import gen3
from unilip_jax.data import text
from unilip_jax.shapes import paraphrases, scene, tars


def test_templates_alternate_and_keep_the_words():
  texts = [paraphrases.paraphrase("a red circle", paraphrases.PROMPTS, i)
          for i in range(2 * len(paraphrases.PROMPTS))]
  assert len(set(texts)) == len(paraphrases.PROMPTS)
  assert texts[:len(paraphrases.PROMPTS)] == texts[len(paraphrases.PROMPTS):]
  assert all("a red circle" in one and one != "a red circle" for one in texts)


def test_no_paraphrase_is_truncated():
  config, layout = gen3.get_config("tiny"), text.Text("shapes")
  for i in range(500):
    prompt = tars.scene_sample(0, i, "train", scene.SIZES, paraphrased=True)["txt"].decode()
    instruction = tars.sample_edit(0, i, "train", paraphrased=True).instruction
    assert layout.generation(prompt, 200)[1].sum() <= config.text.t2i_length
    assert layout.editing(instruction, 16, 200)[1].sum() <= config.text.edit_length
