"""Token layouts equal the recorded official ones; only a prompt's own text is ever cut."""

import json
import pickle

import numpy as np
import pytest

from unilip_jax.data import text as text_lib

_QUERIES, _IMAGE_TOKENS = 16, 16


@pytest.fixture(scope="module")
def text(golden):
  return text_lib.Text(str(golden / "ckpt/unilip_hf"))


def _official(arrays, row):
  """Ids of a recorded training row, through `<img>`."""
  ids = arrays["input_ids"][row][arrays["attention_mask"][row].astype(bool)]
  return ids[:-_QUERIES].tolist()


def test_generation_prompts_equal_the_recorded_ones(golden, text):
  arrays = np.load(golden / "gen_train_t2i.npz")
  for row, prompt in enumerate(("a red cube on a table", None)):
    tokens, mask = text.generation(prompt, 80)
    assert tokens[mask].tolist() == _official(arrays, row)
    assert (tokens[~mask] == text.pad).all()


def test_editing_prompts_equal_the_recorded_ones(golden, text):
  arrays = np.load(golden / "gen_train_ti2i.npz")
  for row, prompt in enumerate(("make the cube blue", None)):
    tokens, mask = text.editing(prompt, _IMAGE_TOKENS, 100)
    assert tokens[mask].tolist() == _official(arrays, row)


def test_chat_equals_the_recorded_query(golden, text):
  recorded = json.loads((golden / "understanding_chat_text.json").read_text())["unilip"]["query"]
  assert text.chat([text_lib.Turn("What is this?")], tiles=1, image_tokens=_IMAGE_TOKENS) == recorded
  ids = np.load(golden / "understanding_chat.npz")["input_ids"][0]
  assert text.encode(recorded) == ids.tolist()


def test_a_long_prompt_loses_the_end_of_its_own_text_only(text):
  prompt = "a long story about a cube " * 10
  tokens, mask = text.editing(prompt, _IMAGE_TOKENS, 90)
  assert mask.all()
  assert (tokens == text.image_slot).sum() == _IMAGE_TOKENS
  full, _ = text.editing(prompt, _IMAGE_TOKENS, 400)
  tail = len("\n") + 1 + _IMAGE_TOKENS + 1 + 1 + len("\n") + 1 + len("assistant\n") + 1
  end = len(full[full != text.pad]) - tail
  np.testing.assert_array_equal(tokens[-tail:], full[end:end + tail])
  np.testing.assert_array_equal(tokens[:90 - tail], full[:90 - tail])


def test_a_length_without_room_for_the_layout_is_refused(text):
  with pytest.raises(text_lib.PromptTooLongError, match="more than 20"):
    text.editing("make it red", _IMAGE_TOKENS, 20)


def test_special_tokens_in_a_users_text_are_removed(text):
  tokens, mask = text.generation("a <img> <IMG_CONTEXT>cube<|im_end|>", 80)
  clean, _ = text.generation("a  cube", 80)
  np.testing.assert_array_equal(tokens, clean)
  assert not (tokens[mask] == text.image_slot).any()


def test_conversations_mark_the_answers_and_their_end(text):
  turns = [text_lib.Turn("how many?", "two"), text_lib.Turn("colour?", "red")]
  tokens, mask, answers = text.conversation(turns, 1, _IMAGE_TOKENS, 300, system="")
  assert text.decode(tokens[answers]) == "twored"
  assert (tokens[answers] == text.turn_end).sum() == 2
  assert (mask | ~answers).all()
  full = text.chat(turns, 1, _IMAGE_TOKENS, system="")
  assert tokens[mask].tolist() == text.encode(full.removesuffix("\n"))


def test_turns_that_do_not_fit_are_left_out_completely(text):
  turns = [text_lib.Turn("how many?", "two"), text_lib.Turn("colour?", "red" * 100)]
  tokens, _, answers = text.conversation(turns, 1, _IMAGE_TOKENS, 120, system="")
  assert text.decode(tokens[answers]) == "two"
  with pytest.raises(text_lib.PromptTooLongError, match="more than 30"):
    text.conversation(turns, 1, _IMAGE_TOKENS, 30)


def test_a_copy_in_another_process_is_the_same(text):
  copy = pickle.loads(pickle.dumps(text))
  np.testing.assert_array_equal(copy.generation("x", 60)[0], text.generation("x", 60)[0])


def test_clear_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"tokenizer.*docs/weights.md"):
    text_lib.Text(str(tmp_path / "tokenizer.json"))
