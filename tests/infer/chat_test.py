"""The images of a conversation come first, in order, numbered where there are several."""

import types

import numpy as np

from unilip_jax.data import text as text_lib
from unilip_jax.infer import chat
from unilip_jax.sampling import text as text_sampling

_SIZE, _TOKENS = 4, 2  # pixels per side and tokens of a tile


def _asked(images, questions, max_tiles):
  """(tokens of each conversation without padding, pixels) that the program gets."""
  tokenizer = types.SimpleNamespace(image_tokens=lambda size: _TOKENS)
  model = types.SimpleNamespace(dims=types.SimpleNamespace(tokenizer=tokenizer))
  text = text_lib.Text("shapes")
  one = chat.Chat(model, text, image_size=_SIZE, batch_size=len(questions))
  rows = []

  def run(params, tokens, mask, pixels, *_, **options):
    rows.append(([list(t[m]) for t, m in zip(tokens, mask)], pixels))
    return np.zeros((len(tokens), 1), np.int32), np.zeros(len(tokens), np.int32)

  one._run = run
  one.answer({}, images, [[q] for q in questions], text_sampling.Options(1), seed=0, system="",
             max_tiles=max_tiles)
  return text, *rows[0]


def _flat(value, width=_SIZE, height=_SIZE):
  return np.full((height, width, 3), value, np.uint8)


def test_several_images_are_laid_out_as_internvl_does():
  text, tokens, pixels = _asked(
      [[_flat(1), _flat(2, width=2 * _SIZE)], [_flat(3)], []], ["Which?", "What?", "Why?"], 6)
  tile = "<IMG_CONTEXT>" * _TOKENS
  prompts = [f"Image-1: <img>{tile}</img>\nImage-2: <img>{3 * tile}</img>\nWhich?",
             f"<img>{tile}</img>\nWhat?", "Why?"]
  assert tokens == [text.encode(f"<|im_start|>user\n{p}<|im_end|>\n<|im_start|>assistant\n")
                    for p in prompts]
  values = [[int(t[0, 0, 0]) for t in row] for row in pixels]
  assert values == [[1, 2, 2, 2], [3, 0, 0, 0], [0, 0, 0, 0]]  # tiles and thumbnail of the second image


def test_several_images_share_64_tiles():
  wide = _flat(1, width=12 * _SIZE)
  _, _, pixels = _asked([[wide]], ["a"], 12)
  assert pixels.shape[1] == 13
  _, _, pixels = _asked([[wide] * 8], ["a"], 12)
  assert pixels.shape[1] == 8 * 9  # eight tiles and a thumbnail each
