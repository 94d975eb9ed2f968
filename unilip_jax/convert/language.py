"""tokenizer.json of a language model's folder, made of vocab.json and merges.txt where it is absent.

InternVL3's original repositories carry the files of transformers' slow Qwen2 tokenizer. The same
byte-level BPE is built of them with the `tokenizers` package, so that generation and chat need no
transformers.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from unilip_jax.convert import read
from unilip_jax.weights import folder as folder_lib

# Qwen2's way of cutting text into pieces before BPE (transformers' Qwen2 tokenizer).
_PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"


def tokenizer_json(folder: pathlib.Path) -> str | None:
  """The text of tokenizer.json, from the folder or made of its other files; None if it has none.

  Raises:
    read.ReadError: if the files are damaged.
  """
  file = folder / folder_lib.TOKENIZER_FILE
  try:
    if file.is_file():
      text = file.read_text()
      tokenizers.Tokenizer.from_str(text)
      return text
    if (folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file():
      return _qwen2(folder).to_str()
  except Exception as error:  # the package raises plain Exception for what it cannot parse
    raise read.ReadError(f"{folder}: the tokenizer's files are damaged: {error}") from error
  return None


def _qwen2(folder: pathlib.Path) -> tokenizers.Tokenizer:
  vocabulary = json.loads((folder / _VOCABULARY).read_text())
  lines = (folder / _MERGES).read_text().splitlines()
  merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False,
                                              byte_fallback=False))
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated", invert=False),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  for index, token in sorted(_added(folder).items()):
    if tokenizer.token_to_id(token.content) is None and tokenizer.get_vocab_size() != index:
      raise ValueError(f"{token.content} has id {index}, but {tokenizer.get_vocab_size()} tokens stand "
                       "before it")
    (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
  return tokenizer


def _added(folder: pathlib.Path) -> dict[int, tokenizers.AddedToken]:
  """{id: token} of what stands beside the vocabulary."""
  config = _optional(folder / "tokenizer_config.json")
  if "added_tokens_decoder" in config:
    return {int(i): tokenizers.AddedToken(
        t["content"], single_word=t.get("single_word", False), lstrip=t.get("lstrip", False),
        rstrip=t.get("rstrip", False), normalized=t.get("normalized", False),
        special=t.get("special", True)) for i, t in config["added_tokens_decoder"].items()}
  return {i: tokenizers.AddedToken(text, normalized=False, special=True)
          for text, i in _optional(folder / "added_tokens.json").items()}


def _optional(path: pathlib.Path) -> Mapping[str, Any]:
  return json.loads(path.read_text()) if path.is_file() else {}
