"""InternVL3's vision side: InternViT and mlp1, in the original and the transformers layout.

Only the number of attention heads leaves no trace in shapes: it comes from config.json, from the preset of
the same width, or from the user.
"""

from collections.abc import Mapping
import re
from typing import Any

import tokenizers

from unilip_jax.convert import engine, io, modules, qwen2, reading
from unilip_jax.data import text as text_lib
from unilip_jax.models import presets

Rule = engine.Rule
Shapes = Mapping[str, tuple[int, ...]]

# field -> the only value that models/vision/internvit.py implements; original and transformers names
_VIT = {
    "norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6, "use_qk_norm": False, "attention_bias": True, "use_mask_token": False,
    "use_absolute_position_embeddings": True}
_INTERNVL = {"downsample_ratio": 0.5, "select_layer": -1, "vision_feature_layer": -1,
             "ps_version": "v2", "projector_hidden_act": "gelu"}


def rules(dims: presets.VitDims, torch: str, path: str) -> list[Rule]:
  """Returns the ViT's rules in the original layout: InternVL's own files, `.pth` and UniLIP folders."""
  layer, inner, n = f"{torch}encoder.layers.{{i}}.", f"{path}layers/", dims.depth
  table = [
      Rule(f"{torch}embeddings.class_embedding", f"{path}cls_embed"),
      Rule(f"{torch}embeddings.position_embedding", f"{path}pos_embed"),
      *engine.conv(f"{torch}embeddings.patch_embedding", f"{path}patch_embed"),
      Rule(f"{layer}ls1", f"{inner}ls1", count=n),
      Rule(f"{layer}ls2", f"{inner}ls2", count=n)]
  for name in ("norm1", "norm2"):
    table += engine.norm(f"{layer}{name}", f"{inner}{name}", n)
  for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
    table += engine.linear(f"{layer}{name}", inner + name.replace(".", "/"), n)
  return table


def rules_transformers(dims: presets.VitDims, torch: str, path: str) -> list[Rule]:
  """Returns the ViT's rules in transformers' layout."""
  layer, inner, n = f"{torch}encoder.layer.{{i}}.", f"{path}layers/", dims.depth
  attention = f"{layer}attention."
  qkv = [f"{attention}{x}_proj" for x in "qkv"]
  return [
      Rule(f"{torch}embeddings.cls_token", f"{path}cls_embed"),
      Rule(f"{torch}embeddings.position_embeddings", f"{path}pos_embed"),
      *engine.conv(f"{torch}embeddings.patch_embeddings.projection", f"{path}patch_embed"),
      Rule(f"{layer}lambda_1", f"{inner}ls1", count=n),
      Rule(f"{layer}lambda_2", f"{inner}ls2", count=n),
      Rule(tuple(f"{x}.weight" for x in qkv), f"{inner}attn/qkv/kernel", "linear", n),
      Rule(tuple(f"{x}.bias" for x in qkv), f"{inner}attn/qkv/bias", count=n),
      *engine.norm(f"{layer}layernorm_before", f"{inner}norm1", n),
      *engine.norm(f"{layer}layernorm_after", f"{inner}norm2", n),
      *engine.linear(f"{attention}projection_layer", f"{inner}attn/proj", n),
      *engine.linear(f"{layer}mlp.fc1", f"{inner}mlp/fc1", n),
      *engine.linear(f"{layer}mlp.fc2", f"{inner}mlp/fc2", n)]


def mlp1_rules(torch: str, path: str) -> list[Rule]:
  """Returns mlp1's rules as a Sequential."""
  return [*engine.norm(f"{torch}0", f"{path}norm"), *engine.linear(f"{torch}1", f"{path}fc1"),
          *engine.linear(f"{torch}3", f"{path}fc2")]


def mlp1_rules_transformers(torch: str, path: str) -> list[Rule]:
  """Returns mlp1's rules in transformers' layout."""
  return [*engine.norm(f"{torch}layer_norm", f"{path}norm"),
          *engine.linear(f"{torch}linear_1", f"{path}fc1"),
          *engine.linear(f"{torch}linear_2", f"{path}fc2")]


def from_config(config: Mapping[str, Any]) -> presets.VitDims:
  """Returns the ViT's dimensions from InternVL's config.json, original or transformers layout.

  Raises:
    DimsError: for variants that are not implemented, by field.
  """
  vision = config["vision_config"]
  reading.refuse_others(vision, _VIT, "config.json, vision_config")
  reading.refuse_others(config, _INTERNVL, "config.json")
  return presets.VitDims(
      depth=vision["num_hidden_layers"], width=vision["hidden_size"],
      heads=vision["num_attention_heads"], mlp=vision["intermediate_size"],
      patch=_side(vision["patch_size"]), image_size=_side(vision["image_size"]),
      layer_scale_init=vision.get("layer_scale_init_value", vision.get("initializer_factor", 0.1)))


def from_shapes(shapes: Shapes, prefix: str, heads: int | None) -> presets.VitDims:
  """Returns the ViT's dimensions from names and shapes in the original layout.

  Args:
    shapes: {PyTorch name: shape}.
    prefix: e.g. "encoder.".
    heads: attention heads; None uses those of the preset of the same width.

  Raises:
    DimsError: if the number of heads is unknown or does not divide the width.
  """
  width, _, patch, _ = shapes[f"{prefix}embeddings.patch_embedding.weight"]
  positions = shapes[f"{prefix}embeddings.position_embedding"][1] - 1
  if heads is None:
    known = {vit.width: vit.heads for vit in (presets.get(s).tokenizer.vit for s in presets.SIZES)}
    if width not in known:
      raise reading.DimsError(
          f"the ViT's width is {width}, and its number of heads does not follow from shapes; known "
          f"widths: {sorted(known)}. Give it: --vit_heads=N")
    heads = known[width]
  if width % heads:
    raise reading.DimsError(f"--vit_heads={heads} does not divide the ViT's width {width}")
  return presets.VitDims(
      depth=reading.count_layers(shapes, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."), width=width,
      heads=heads, mlp=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0], patch=patch,
      image_size=round(positions**0.5) * patch)


def mlp1_from_shapes(shapes: Shapes, first: str) -> modules.WidthDims:
  """Returns mlp1's dimensions from the name of its first linear weight."""
  width, in_width = shapes[first]
  return modules.WidthDims(in_width, width)


def to_config(dims: presets.VitDims) -> dict[str, Any]:
  """Returns the config of transformers' InternVL vision tower."""
  return {
      "model_type": "internvl_vision", "hidden_size": dims.width, "num_hidden_layers": dims.depth,
      "num_attention_heads": dims.heads, "intermediate_size": dims.mlp,
      "image_size": [dims.image_size] * 2, "patch_size": [dims.patch] * 2, "num_channels": 3,
      "attention_bias": True, "use_qk_norm": False, "norm_type": "layer_norm",
      "layer_norm_eps": 1e-6, "layer_scale_init_value": dims.layer_scale_init, "hidden_act": "gelu",
      "attention_dropout": 0.0, "hidden_dropout_prob": 0.0, "projection_dropout": 0.0,
      "initializer_range": 0.02, "use_absolute_position_embeddings": True, "use_mask_token": False,
      "use_mean_pooling": True}


def internvl_to_config(
    vit: presets.VitDims, llm: presets.LlmDims, text: tokenizers.Tokenizer | None) -> dict[str, Any]:
  """Returns the config of transformers' InternVLForConditionalGeneration."""
  token = {} if text is None else {"image_token_id": text.token_to_id(text_lib.IMAGE_SLOT)}
  return {
      "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl", **token,
      "downsample_ratio": 0.5, "image_seq_length": (vit.image_size // vit.pixels_per_token) ** 2,
      "projector_hidden_act": "gelu", "vision_feature_layer": -1,
      "vision_feature_select_strategy": "default", "tie_word_embeddings": llm.tied,
      "text_config": qwen2.to_config(llm, text), "vision_config": to_config(vit)}


ORIGINAL: reading.Layout = {
    "vision_tower": lambda d: rules(d["vision_tower"], "vision_model.", "vision_tower/"),
    "mlp1": lambda d: mlp1_rules("mlp1.", "mlp1/"),
    "llm": lambda d: qwen2.rules(
        d["llm"], "language_model.model.", "llm/", head="language_model.lm_head.weight")}


def _transformers(prefix: str, body: str, head: str) -> reading.Layout:
  return {
      "vision_tower": lambda d: rules_transformers(
          d["vision_tower"], f"{prefix}vision_tower.", "vision_tower/"),
      "mlp1": lambda d: mlp1_rules_transformers(f"{prefix}multi_modal_projector.", "mlp1/"),
      "llm": lambda d: qwen2.rules(d["llm"], body, "llm/", head=head)}


# As transformers 4 saves it, and loads in every release; and as transformers 5 saves it.
TRANSFORMERS = _transformers("", "language_model.model.", "language_model.lm_head.weight")
TRANSFORMERS_5 = _transformers("model.", "model.language_model.", "lm_head.weight")


def read_original(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads InternVL's own repositories."""
  llm, skip, notes = qwen2.of_source(
      source, source.config["llm_config"], "language_model.model.", "language_model.lm_head.weight")
  dims = {"vision_tower": from_config(source.config),
          "mlp1": mlp1_from_shapes(source.tensors.shapes, "mlp1.1.weight"), "llm": llm}
  return reading.Reading(reading.parts(ORIGINAL, dims), skip, notes)


def read_transformers(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads transformers' InternVL, under the names of release 4 or 5."""
  new = any(name.startswith("model.vision_tower.") for name in source.tensors)
  layout, prefix = (TRANSFORMERS_5, "model.") if new else (TRANSFORMERS, "")
  first = f"{prefix}multi_modal_projector.linear_1.weight"
  if first not in source.tensors:
    raise reading.DimsError(f"{first} is absent; found {', '.join(list(source.tensors)[:4])}, …")
  body, head = (("model.language_model.", "lm_head.weight") if new else
                ("language_model.model.", "language_model.lm_head.weight"))
  llm, skip, notes = qwen2.of_source(source, source.config["text_config"], body, head)
  dims = {"vision_tower": from_config(source.config),
          "mlp1": mlp1_from_shapes(source.tensors.shapes, first), "llm": llm}
  return reading.Reading(reading.parts(layout, dims), skip, notes)


def _side(value: int | list[int]) -> int:
  if isinstance(value, int):
    return value
  if len(set(value)) != 1:
    raise reading.DimsError(f"config.json: {value} is not square")
  return value[0]
