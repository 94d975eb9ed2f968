"""The included tokenizer equals the result of its script, has every word, and fits the tiny model."""

import json

import pytest
import tokenizers

from unilip_jax.models import presets
from unilip_jax.shapes import make_tokenizer, scene


@pytest.fixture(scope="module")
def included():
  return tokenizers.Tokenizer.from_file(str(make_tokenizer.FILE))


def test_the_script_makes_the_included_file(included):
  assert json.loads(make_tokenizer.build().to_str()) == json.loads(included.to_str())


def test_its_size_is_the_tiny_models_vocabulary(included):
  assert included.get_vocab_size() == presets.get("tiny").llm.vocab


@pytest.mark.parametrize(
    "word", [*scene.COLOURS, *scene.SHAPES, *scene.SIZES, *scene.BACKGROUNDS, "left", "bottom"])
def test_words_of_the_world_are_one_token(included, word):
  assert len(included.encode(f" {word}").ids) == 1


@pytest.mark.parametrize("text", ["a red circle", "Zwölf Boxkämpfer", "猫", "tab\tand\nline"])
def test_any_text_comes_back(included, text):
  assert included.decode(included.encode(text).ids) == text
