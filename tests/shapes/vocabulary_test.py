"""Prompts of Shapes have no unknown word; other words are named, each once."""

import numpy as np
import pytest

from unilip_jax.shapes import captions, paraphrases, questions, tars, vocabulary


def test_no_word_of_captions_edits_and_questions_is_unknown():
  texts = []
  for index in range(60):
    rng = np.random.default_rng(index)
    scene = captions.sample_scene(0, index, "train")
    texts += [captions.caption(scene, rng).text, tars.sample_edit(0, index, "train").instruction]
    texts += [t for q in questions.questions(scene, rng, allow_unseen=True) for t in (q.text, q.answer)]
  texts += [way.format("a red circle") for way in (*paraphrases.PROMPTS, *paraphrases.EDITS)]
  assert vocabulary.unknown_words(texts) == []


@pytest.mark.parametrize(("texts", "words"), [
    (["A photo of sks dog", "the dog, a pink cat!"], ["photo", "sks", "dog", "pink", "cat"]),
    (["une fête, 3 x 4"], ["une", "fête"]), (["What is in this image?"], []),
    (["What is in this photo?"], ["photo"]), ([], [])])
def test_other_words_are_named_once(texts, words):
  assert vocabulary.unknown_words(texts) == words
  assert all(repr(word) in vocabulary.note(texts) for word in words)
  assert bool(vocabulary.note(texts)) is bool(words)
