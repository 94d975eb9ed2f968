"""tokenizer.json out of the slow tokenizer's files gives the ids that transformers gives."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
import transformers

from unilip_jax.convert import io as io_lib
from unilip_jax.convert import qwen2
from unilip_jax.data import text as text_lib

_SPECIAL = (text_lib.PAD, text_lib.TURN_START, text_lib.TURN_END, text_lib.IMAGE_START,
            text_lib.IMAGE_END, text_lib.IMAGE_SLOT)
_TEXTS = (
    "Generate an image: a birthday cake, 3 candles!", "它是什么？\n\n  two  spaces", "I'm can't CAN'T",
    "x = 1234567;\r\n\tdef f(): pass", "cafe\u0301 naïve ﬁ", "", " ", "émojis 🎂🎂 end",
    f"{text_lib.TURN_START}user\nhi{text_lib.TURN_END}\n{text_lib.IMAGE_START}"
    f"{text_lib.IMAGE_SLOT * 3}{text_lib.IMAGE_END}")


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
  """A small byte-level vocabulary in the files of InternVL3's original repositories."""
  folder = tmp_path_factory.mktemp("slow")
  trained = tokenizers.Tokenizer(models.BPE())
  trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trained.train_from_iterator(
      [*_TEXTS, "the image of a cake is generated; generate an image of a red circle"] * 3,
      trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                          show_progress=False))
  trained.model.save(str(folder))
  size = trained.get_vocab_size()
  added = {str(size + i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                           "single_word": False, "special": True} for i, t in enumerate(_SPECIAL)}
  (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
  (folder / "added_tokens.json").write_text(
      json.dumps({t["content"]: int(i) for i, t in added.items()}))
  return folder


def _reference(folder):
  merges = (folder / "merges.txt").read_text().splitlines()[1:]
  reference = transformers.Qwen2Tokenizer(
      vocab=json.loads((folder / "vocab.json").read_text()),
      merges=[tuple(line.split(" ")) for line in merges])
  reference.add_special_tokens({"additional_special_tokens": list(_SPECIAL)})
  return reference


@pytest.mark.parametrize("with_config", [True, False])
def test_ids_equal_those_of_transformers(slow, tmp_path, with_config):
  if not with_config:  # older repositories have added_tokens.json alone
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
      (tmp_path / name).write_text((slow / name).read_text())
    slow = tmp_path
  tokenizer, reference = tokenizers.Tokenizer.from_str(qwen2.tokenizer_json(slow)), _reference(slow)
  for text in _TEXTS:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == reference.encode(text, add_special_tokens=False), text
    assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids)
  assert tokenizer.get_vocab_size() == len(reference)


def test_a_tokenizer_json_is_taken_as_it_is(slow, tmp_path):
  text = qwen2.tokenizer_json(slow)
  (tmp_path / "tokenizer.json").write_text(f"{text}\n")
  assert qwen2.tokenizer_json(tmp_path) == f"{text}\n"
  (tmp_path / "tokenizer.json").write_text(text)
  text = text_lib.Text(str(tmp_path))  # what generation and chat read
  assert text.image_slot == text.size - 1


def test_no_files_give_none_and_broken_ones_an_error(slow, tmp_path):
  assert qwen2.tokenizer_json(tmp_path) is None
  (tmp_path / "vocab.json").write_text((slow / "vocab.json").read_text())
  (tmp_path / "merges.txt").write_text("#version: 0.2\nno_such piece\n")
  with pytest.raises(io_lib.ReadError, match=f"{tmp_path}: the tokenizer"):
    qwen2.tokenizer_json(tmp_path)
  (tmp_path / "merges.txt").write_text((slow / "merges.txt").read_text())
  (tmp_path / "added_tokens.json").write_text(json.dumps({text_lib.PAD: 10**6}))
  with pytest.raises(io_lib.ReadError, match="has id 1000000"):
    qwen2.tokenizer_json(tmp_path)
