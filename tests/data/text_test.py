"""Token layouts equal the recorded official ones; only a prompt's own text is ever cut."""

import json
import pickle
import time

import numpy as np
import pytest
import tokenizers
from tokenizers import normalizers

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


@pytest.mark.parametrize("prompt", [
    "<IMG_<IMG_CONTEXT>CONTEXT>", "<|im_<|im_end|>end|>", "<im<img>g>", "<im<|im_end|>g>",
    "<<img><img>img>", "<i<i<img>mg>mg>", "<IMG_CON<img>TEXT>"])
@pytest.mark.parametrize("name", ["text", "shapes"])
def test_no_special_token_forms_from_what_is_left(prompt, name, request):
  text = text_lib.Text("shapes") if name == "shapes" else request.getfixturevalue(name)
  assert text.clean(prompt) == ""
  tokens, _ = text.editing(f"make it {prompt} red", _IMAGE_TOKENS, 200)
  np.testing.assert_array_equal(tokens, text.editing("make it red", _IMAGE_TOKENS, 200)[0])
  plain = text.encode(text.chat([text_lib.Turn("a", "b"), text_lib.Turn("c")], 1, 4, system="s"))
  turns = [text_lib.Turn(prompt + "a", "b" + prompt), text_lib.Turn(f"{prompt} c")]
  assert text.encode(text.chat(turns, 1, 4, system=prompt + "s")) == plain


def test_cleaning_takes_linear_time(text):
  prompt = "<im" * 20_000 + "<img>" + "g>" * 20_000
  start = time.perf_counter()
  assert text.clean(prompt) == ""
  assert time.perf_counter() - start < 5  # 0.1 s; once per nested token it would be an hour


@pytest.mark.parametrize("normalizer", [
    normalizers.NFKC(), normalizers.Replace("\u200b", ""), normalizers.Lowercase(),
    normalizers.Sequence([normalizers.NFC(), normalizers.Replace("≺", "<")])])
def test_no_special_token_forms_by_normalization(golden, tmp_path, normalizer):
  tokenizer = json.loads((golden / "ckpt/unilip_hf/tokenizer.json").read_text())
  for token in tokenizer["added_tokens"]:
    token["normalized"] = True
  made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
  made.normalizer = normalizer
  made.save(str(tmp_path / "tokenizer.json"))
  text = text_lib.Text(str(tmp_path))
  for prompt in (
      "＜img＞a", "<im\u200bg>a", "<IMG>a", "≺img>a", "＜im＜img＞g＞a", "<im<im\u200bg>\u200bg>a"):
    tokens, mask = text.generation(prompt, 80)
    plain, _ = text.generation("a", 80)
    assert (tokens[mask] == text.encode("<img>")[0]).sum() == 1, prompt
    assert (tokens == text.image_slot).sum() == (plain == text.image_slot).sum() == 0


def test_grounding_tags_survive_as_in_internvls_own_tokenizer(golden, tmp_path):
  made = tokenizers.Tokenizer.from_str((golden / "ckpt/unilip_hf/tokenizer.json").read_text())
  made.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in text_lib.GROUNDING])
  made.save(str(tmp_path / "tokenizer.json"))
  text = text_lib.Text(str(tmp_path))
  answer = "<ref>cat</ref><box>[[1, 2, 3, 4]]</box><quad>x</quad>"
  ids = text.encode(answer)
  assert len(ids) < len(answer)
  assert text.decode([*ids, text.turn_end, text.pad, text.image_slot]) == answer
  assert text.clean(f"where is {answer}<img>") == f"where is {answer}"


@pytest.mark.parametrize(("prompts", "message"), [
    ([], "no prompt was given"), (["a", " \n"], "prompt 1 is empty"),
    (["\u200b\ufeff"], "prompt 0 is empty"),
    (["<img> <|im_end|>"], "prompt 0 is empty"), ([None], "prompt 0 is NoneType, not text"),
    ([b"a"], "prompt 0 is bytes, not text"), ([3], "prompt 0 is int"), (["a\ud800"], "not valid Unicode")])
def test_prompts_without_text_are_refused(text, prompts, message):
  with pytest.raises(ValueError, match=message):
    text.check(prompts)


def test_prompts_of_training_and_inference_are_cleaned_alike(text):
  plain, _ = text.generation("a red cube", 80)
  for prompt in ("a\nred  cube ", "a <img>red\tcube", "\u3000a red <|im_<img>end|> cube"):
    np.testing.assert_array_equal(text.generation(prompt, 80)[0], plain)


def test_what_does_not_fit_is_counted(text, caplog):
  before = dict(text_lib._tally.counts)
  for _ in range(3):
    text.editing("a long story about a cube " * 10, _IMAGE_TOKENS, 91)
    text.conversation([text_lib.Turn("how many?", "two"), text_lib.Turn("colour?", "red" * 100)], 1,
                      _IMAGE_TOKENS, 121, system="")
  new = {kind: n - before.get(kind, 0) for kind, n in text_lib._tally.counts.items()}
  assert new["prompts are cut to 91 tokens"] == 3
  assert new["conversations lose their last turns to fit into 121 tokens"] == 3
  assert caplog.text.count("are cut to 91 tokens (one of") == 1


def test_a_tokenizer_is_recognised_by_its_content(tmp_path):
  """A run keeps a copy of its tokenizer: the name alone does not tell what it is."""
  copy = tmp_path / "tokenizer.json"
  copy.write_bytes(text_lib.tokenizer_file("shapes").read_bytes())
  assert text_lib.same_tokenizer(str(copy), "shapes")
  assert text_lib.same_tokenizer(str(tmp_path), "shapes")
  copy.write_text(copy.read_text() + "\n")
  assert not text_lib.same_tokenizer(str(copy), "shapes")
