"""Qwen2 in transformers: the language model, stacks of its layers (the connector), and its tokenizer.

InternVL3's original repositories carry the files of transformers' slow Qwen2 tokenizer. The same
byte-level BPE is built from them with the `tokenizers` package, so that generation and chat need no
transformers.
"""

from collections.abc import Mapping
import json
import pathlib
import re
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from unilip_jax.convert import engine, io, reading
from unilip_jax.data import text as text_lib
from unilip_jax.models import presets
from unilip_jax.weights import folder as folder_lib

Rule = engine.Rule

# field -> the only value that models/qwen2.py implements
_ONLY = {"model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6,
         "use_sliding_window": False}
_SKIP = (r".*rotary_emb\.inv_freq$", "rotary frequencies: computed, no weight")
_TIED = "output head of a tied model: it is the embedding"
# Qwen2's splitting of text into pieces before BPE (transformers' Qwen2 tokenizer).
_PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"


def rules(dims: presets.LlmDims, torch: str, path: str, *, head: str) -> list[Rule]:
  """Returns the language model's rules; `head` names the output head's weight, not read if it is tied."""
  vocabulary = [Rule(f"{torch}embed_tokens.weight", f"{path}embedding",
                     engine.padded_vocabulary(dims.vocab, dims.rows))]
  if not dims.tied:
    vocabulary.append(Rule(head, f"{path}head",
                           engine.padded_vocabulary(dims.vocab, dims.rows, head=True)))
  return vocabulary + stack(dims, dims.depth, torch, f"{path}stack/")


def stack(dims: presets.LlmDims, depth: int, torch: str, path: str) -> list[Rule]:
  """Returns the rules of `depth` layers and the norm after them."""
  layer, inner = f"{torch}layers.{{i}}.", f"{path}layers/"
  attention = [f"{layer}self_attn.{x}_proj" for x in "qkv"]
  sizes = tuple(n * dims.head_dim for n in (dims.heads, dims.kv_heads, dims.kv_heads))
  return [
      Rule(f"{layer}input_layernorm.weight", f"{inner}norm1/scale", count=depth),
      Rule(f"{layer}post_attention_layernorm.weight", f"{inner}norm2/scale", count=depth),
      Rule(tuple(f"{x}.weight" for x in attention), f"{inner}attn/qkv/kernel", "linear", depth, sizes),
      Rule(tuple(f"{x}.bias" for x in attention), f"{inner}attn/qkv/bias", "copy", depth, sizes),
      Rule(f"{layer}self_attn.o_proj.weight", f"{inner}attn/out/kernel", "linear", depth),
      Rule((f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight"),
           f"{inner}mlp/gate_up/kernel", "linear", depth),
      Rule(f"{layer}mlp.down_proj.weight", f"{inner}mlp/down/kernel", "linear", depth),
      Rule(f"{torch}norm.weight", f"{path}norm/scale")]


def from_config(text: Mapping[str, Any], *, vocab: int, tied: bool) -> presets.LlmDims:
  """Returns the dimensions from the entry `llm_config` or `text_config` of InternVL's config.json.

  Args:
    text: the entry.
    vocab: rows of the embedding table.
    tied: whether the output head is the embedding.

  Raises:
    DimsError: for variants that are not implemented, by field.
  """
  where = "config.json, language model"
  reading.refuse_others(text, _ONLY, where)
  # Dynamic scaling changes nothing up to max_position_embeddings, and prompts here are shorter.
  rope = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "dynamic"):
    raise reading.DimsError(f"{where}: rope_scaling of type {kind!r} is not implemented (default, dynamic)")
  width, heads = text["hidden_size"], text["num_attention_heads"]
  if text.get("head_dim") not in (None, width // heads) or width % heads:
    raise reading.DimsError(
        f"{where}: {heads} heads of {text.get('head_dim')} do not make the width {width}")
  return presets.LlmDims(
      depth=text["num_hidden_layers"], width=width, heads=heads,
      kv_heads=text["num_key_value_heads"], mlp=text["intermediate_size"], vocab=vocab, tied=tied,
      rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))))


def of_source(
    source: io.Source, text: Mapping[str, Any], body: str, head: str
) -> tuple[presets.LlmDims, list[tuple[str, str]], list[str]]:
  """Returns (dimensions, tensors to skip, notes) of a source's language model.

  Args:
    source: with config.json.
    text: its entry about the language model.
    body: prefix of the names, e.g. "model.language_model.".
    head: name of the output head's weight.

  Raises:
    DimsError: for variants that are not implemented, by field.
  """
  shapes = source.tensors.shapes
  # transformers 5 writes the entry at both levels, and they may differ: then the tensors decide.
  levels = {level["tie_word_embeddings"] for level in (text, source.config)
            if level.get("tie_word_embeddings") is not None}
  tied = levels.pop() if len(levels) == 1 else head not in shapes
  dims = from_config(text, vocab=shapes[f"{body}embed_tokens.weight"][0], tied=tied)
  notes = [f"vocabulary of {dims.vocab} rows, {dims.rows} here; "
           f"the head is {'the embedding (tied)' if dims.tied else 'its own'}"]
  if text.get("vocab_size") not in (None, dims.vocab):
    notes.append(f"config.json has vocab_size {text['vocab_size']}; the tensor counts")
  return dims, [_SKIP, (re.escape(head) + "$", _TIED)] if dims.tied else [_SKIP], notes


def to_config(dims: presets.LlmDims, text: tokenizers.Tokenizer | None) -> dict[str, Any]:
  """Returns the config of transformers' Qwen2."""
  return {
      "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
      "hidden_size": dims.width, "intermediate_size": dims.mlp, "num_hidden_layers": dims.depth,
      "num_attention_heads": dims.heads, "num_key_value_heads": dims.kv_heads,
      "vocab_size": dims.vocab, "tie_word_embeddings": dims.tied, "rope_theta": dims.rope_theta,
      "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "attention_dropout": 0.0,
      "use_sliding_window": False, "initializer_range": 0.02, "use_cache": True,
      **generation_config(text)}


def generation_config(text: tokenizers.Tokenizer | None) -> dict[str, Any]:
  """Returns generation_config.json, the tokens that end answers; {} without a tokenizer."""
  if text is None:
    return {}
  ids = {"bos_token_id": text_lib.PAD, "eos_token_id": text_lib.TURN_END, "pad_token_id": text_lib.PAD}
  return {name: text.token_to_id(token) for name, token in ids.items()}


def tokenizer_config() -> dict[str, Any]:
  """Returns tokenizer_config.json, for transformers' AutoTokenizer."""
  return {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": text_lib.TURN_END,
          "pad_token": text_lib.PAD, "model_max_length": 8192, "padding_side": "right",
          "clean_up_tokenization_spaces": False}


def tokenizer_json(folder: pathlib.Path) -> str | None:
  """Returns the text of tokenizer.json, the folder's own or built from its other files; None without.

  Raises:
    io.ReadError: if the files are damaged.
  """
  file = folder / folder_lib.TOKENIZER_FILE
  try:
    if file.is_file():
      text = file.read_text()
      tokenizers.Tokenizer.from_str(text)
      return text
    if (folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file():
      return _build_tokenizer(folder).to_str()
  except Exception as error:  # the package raises plain Exception for what it cannot parse
    raise io.ReadError(f"{folder}: the tokenizer's files are damaged: {error}") from error
  return None


def _build_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
  vocabulary = json.loads((folder / _VOCABULARY).read_text())
  lines = (folder / _MERGES).read_text().splitlines()
  merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
  tokenizer = tokenizers.Tokenizer(
      models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated", invert=False),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  for index, token in sorted(_added_tokens(folder).items()):
    size = tokenizer.get_vocab_size()
    if tokenizer.token_to_id(token.content) is None and size != index:
      raise ValueError(f"{token.content} has id {index}, but {size} tokens come before it")
    (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
  return tokenizer


def _added_tokens(folder: pathlib.Path) -> dict[int, tokenizers.AddedToken]:
  """Returns {id: token} of the tokens that are not in the vocabulary file."""
  def optional(name: str) -> Mapping[str, Any]:
    return json.loads((folder / name).read_text()) if (folder / name).is_file() else {}

  config = optional("tokenizer_config.json")
  if "added_tokens_decoder" in config:
    return {int(i): tokenizers.AddedToken(
        t["content"], special=t.get("special", True), **{
            flag: t.get(flag, False) for flag in ("single_word", "lstrip", "rstrip", "normalized")})
            for i, t in config["added_tokens_decoder"].items()}
  return {i: tokenizers.AddedToken(text, normalized=False, special=True)
          for text, i in optional("added_tokens.json").items()}
