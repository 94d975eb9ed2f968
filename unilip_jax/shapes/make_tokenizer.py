"""Makes shapes/tokenizer.json: byte-level BPE in which every word of the Shapes world is one token.

  python -m unilip_jax.shapes.make_tokenizer

Any other text is encoded too, in more tokens. Special tokens have the names that InternVL and UniLIP give
them. The result is deterministic: it equals the file in the repository.
"""

import pathlib

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from unilip_jax.shapes import captions, edits, language, questions, scene

FILE = pathlib.Path(__file__).with_name("tokenizer.json")
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "[IMG]",
            "[/IMG]", "<image>")
_SIZE = 640  # with the special tokens
_SCENES = 3000


def corpus() -> list[str]:
  """Returns captions, questions, answers and edits of some scenes, and the words of prompts' layout."""
  lines = ["user\nGenerate an image: ", "user\nEdit the image: ", "assistant\n", "user\n", "system\n",
           "Generate an image.", "Edit the image.", "describe the image."] * _SCENES
  for index in range(_SCENES):
    rng = np.random.default_rng(index)
    one = captions.sample_scene(0, index, scene.SPLITS[index % len(scene.SPLITS)])
    lines += [language.describe(one), captions.caption(one, rng).text]
    for question in questions.questions(one, rng, allow_unseen=True):
      lines += [question.text, question.answer]
    edit = edits.edit(one, edits.EDITS[index % len(edits.EDITS)], rng)
    lines += [edit.instruction] if edit else []
  return lines


def build() -> tokenizers.Tokenizer:
  """Trains the tokenizer."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=_SIZE - len(_SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
      show_progress=False)
  tokenizer.train_from_iterator(corpus(), trainer)
  tokenizer.add_special_tokens(list(_SPECIAL))  # after the words, as in InternVL's vocabulary
  return tokenizer


if __name__ == "__main__":
  build().save(str(FILE))
  print(f"wrote {FILE}: {build().get_vocab_size()} tokens")
