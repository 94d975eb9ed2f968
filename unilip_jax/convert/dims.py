"""Dimensions of foreign weights: from config.json, or from names and shapes where none exists.

Three things leave no trace in shapes: the number of attention heads of the ViT (taken from the preset
of the same width, or given), those of the DiT (likewise, or from its config.json), and DC-AE's
activations (SiLU, as in every published DC-AE of UniLIP).
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from unilip_jax.models import presets

Shapes = Mapping[str, tuple[int, ...]]


class DimsError(ValueError):
  """Dimensions that these networks do not have, or that cannot be told."""


MOST_LAYERS = 1000
# field -> the only value that models/qwen2.py computes
_QWEN2 = {"model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6,
          "use_sliding_window": False}
# field -> the only value that models/internvit.py computes
_VIT_ORIGINAL = {
    "norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6}
_VIT_TRANSFORMERS = {
    "norm_type": "layer_norm", "use_qk_norm": False, "attention_bias": True, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6, "use_mask_token": False, "use_absolute_position_embeddings": True}
_INTERNVL = {"downsample_ratio": 0.5, "select_layer": -1, "vision_feature_layer": -1,
             "ps_version": "v2", "projector_hidden_act": "gelu"}


def vit_from_config(config: Mapping[str, Any]) -> presets.VitDims:
  """The tower of InternVL's config.json, original or transformers' layout.

  Raises:
    DimsError: for variants that are not built here, by field.
  """
  vision = config["vision_config"]
  _refuse(vision, _VIT_ORIGINAL | _VIT_TRANSFORMERS, "config.json, vision_config")
  _refuse(config, _INTERNVL, "config.json")
  return presets.VitDims(
      depth=vision["num_hidden_layers"], width=vision["hidden_size"],
      heads=vision["num_attention_heads"], mlp=vision["intermediate_size"],
      patch=_side(vision["patch_size"]), image_size=_side(vision["image_size"]),
      layer_scale_init=vision.get("layer_scale_init_value", vision.get("initializer_factor", 0.1)))


def vit_from_shapes(shapes: Shapes, prefix: str, heads: int | None) -> presets.VitDims:
  """The tower of names in the original layout.

  Args:
    shapes: {PyTorch name: shape}.
    prefix: e.g. "encoder.".
    heads: attention heads; None takes those of the preset of the same width.

  Raises:
    DimsError: if the heads cannot be told, or do not divide the width.
  """
  width, _, patch, _ = shapes[f"{prefix}embeddings.patch_embedding.weight"]
  positions = shapes[f"{prefix}embeddings.position_embedding"][1] - 1
  grid = round(positions**0.5)
  if heads is None:
    known = {p.tokenizer.vit.width: p.tokenizer.vit.heads
             for p in map(presets.get, presets.SIZES)}
    if width not in known:
      raise DimsError(
          f"the ViT's width is {width}, and shapes do not tell its number of heads; known widths: "
          f"{sorted(known)}. Give it: --vit_heads=N")
    heads = known[width]
  if width % heads:
    raise DimsError(f"--vit_heads={heads} does not divide the ViT's width {width}")
  return presets.VitDims(
      depth=count(shapes, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."), width=width,
      heads=heads, mlp=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0], patch=patch,
      image_size=grid * patch)


def llm_from_config(
    text: Mapping[str, Any], shapes: Shapes, embedding: str, *, tied: bool
) -> presets.LlmDims:
  """The language model of InternVL's config.json.

  Args:
    text: its entry `llm_config` or `text_config`.
    shapes: {PyTorch name: shape}.
    embedding: name of the table of tokens, whose rows are the vocabulary.
    tied: whether the output head is the embedding.

  Raises:
    DimsError: for variants that are not built here, by field.
  """
  where = "config.json, language model"
  _refuse(text, _QWEN2, where)
  # Dynamic scaling changes nothing up to max_position_embeddings, and prompts here are shorter.
  rope = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "dynamic"):
    raise DimsError(f"{where}: rope_scaling of type {kind!r} is not built here (default, dynamic)")
  width, heads = text["hidden_size"], text["num_attention_heads"]
  if text.get("head_dim") not in (None, width // heads) or width % heads:
    raise DimsError(f"{where}: {heads} heads of {text.get('head_dim')} do not make the width {width}")
  return presets.LlmDims(
      depth=text["num_hidden_layers"], width=width, heads=heads,
      kv_heads=text["num_key_value_heads"], mlp=text["intermediate_size"],
      vocab=shapes[embedding][0], tied=tied,
      rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))))


def dit_from_shapes(shapes: Shapes, prefix: str, *, positions: bool) -> presets.DitDims:
  """The DiT of diffusers' names; prefix e.g. "model.dit.".

  Raises:
    DimsError: if its width is not a published one, since shapes do not tell heads and grid.
  """
  block = f"{prefix}transformer_blocks.0."
  width, channels = shapes[f"{prefix}patch_embed.proj.weight"][:2]
  known = {p.dit.width: p.dit for p in map(presets.get, presets.SIZES) if p.llm.vocab > 1000}
  if width not in known:
    raise DimsError(
        f"the DiT's width is {width}, and shapes do not tell its heads; known widths: "
        f"{sorted(known)}. Its config.json is needed: dit_path of the folder's config.json, relative "
        "to that folder, leads to it")
  return dataclasses.replace(
      known[width], depth=count(shapes, rf"{re.escape(prefix)}transformer_blocks\.(\d+)\."),
      channels=channels, caption_width=shapes[f"{prefix}caption_projection.linear_1.weight"][1],
      mlp_ratio=shapes[f"{block}ff.conv_point.weight"][1] / width, positions=positions,
      qk_norm=f"{block}attn1.norm_q.weight" in shapes)


def mlp1_from_shapes(shapes: Shapes, first: str) -> dict[str, int]:
  """mlp1's dimensions from its first linear weight, by name."""
  width, in_width = shapes[first]
  return {"in_width": in_width, "width": width}


def latent_head_from_shapes(shapes: Shapes, prefix: str) -> dict[str, int]:
  """The latent head's dimensions; prefix e.g. "" or "model.vae_decoder."."""
  channels, width = shapes[f"{prefix}down_mlp.1.weight"]
  return {"depth": count(shapes, rf"{re.escape(prefix)}down_blocks\.(\d+)\."), "width": width,
          "channels": channels}


def decoder_from_shapes(shapes: Shapes, prefix: str) -> presets.DcaeDims:
  """The DC-AE decoder of diffusers' names; prefix e.g. "decoder.".

  Raises:
    DimsError: if head dim or upsampling cannot be told.
  """
  below = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
  stages = count(below, r"up_blocks\.(\d+)\.")
  inner, latent_channels = below["conv_in.weight"][:2]
  layers, channels, blocks, scales, norms = [], [], [], [], []
  head_dims, upsampling = set(), set()
  for i in reversed(range(stages)):
    stage = f"up_blocks.{i}."
    upsample = below.get(f"{stage}0.conv.weight")
    first = 0 if upsample is None else 1
    number = max(0, count(below, rf"{re.escape(stage)}(\d+)\.") - first)
    block = f"{stage}{first}."
    attends = f"{block}attn.to_out.weight" in below
    if number:
      inner = below[f"{block}attn.to_out.weight" if attends else f"{block}conv1.weight"][0]
    if upsample is not None:
      upsampling.add(upsample[0] // inner)
    sides = [below[f"{block}attn.to_qkv_multiscale.{s}.proj_in.weight"][-1] for s in range(
        count(below, rf"{re.escape(block)}attn\.to_qkv_multiscale\.(\d+)\."))]
    if sides:
      head_dims.add(below[f"{block}attn.to_qkv_multiscale.0.proj_out.weight"][1])
    norm = f"{block}attn.norm_out." if attends else f"{block}norm."
    layers.insert(0, number)
    channels.insert(0, inner)
    blocks.insert(0, "EfficientViTBlock" if attends else "ResBlock")
    scales.insert(0, tuple(sides))
    norms.insert(0, "batch_norm" if f"{norm}running_mean" in below else "rms_norm")
  if len(head_dims) > 1 or (not head_dims and "EfficientViTBlock" in blocks):
    raise DimsError(f"{prefix}: shapes give head dims {sorted(head_dims)} in place of one; "
                    "a config.json of AutoencoderDC is needed beside the weights")
  if len(upsampling) != 1 or not upsampling <= {1, 4}:
    raise DimsError(f"{prefix}: the upsampling convolutions multiply channels by "
                    f"{sorted(upsampling)}; 1 (interpolate) or 4 (pixel_shuffle) expected")
  return presets.DcaeDims(
      latent_channels=latent_channels, channels=tuple(channels), layers=tuple(layers),
      blocks=tuple(blocks), qkv_multiscales=tuple(scales),
      head_dim=next(iter(head_dims), 32), norms=tuple(norms), acts=("silu",) * stages,
      resample="interpolate" if upsampling == {1} else "pixel_shuffle")


def vgg_from_shapes(shapes: Shapes) -> presets.VggDims:
  """VGG features of torchvision's names: numbers that skip one more stand after a pooling."""
  numbers = sorted(int(m[1]) for m in (
      re.match(r"features\.(\d+)\.weight", name) for name in shapes) if m)
  slices: list[list[int]] = []
  for previous, number in zip([-3, *numbers], numbers):
    if number - previous > 2:  # convolution, ReLU, pooling
      slices.append([])
    slices[-1].append(number)
  return presets.VggDims(
      channels=tuple(shapes[f"features.{s[0]}.weight"][0] for s in slices),
      convs=tuple(len(s) for s in slices))


def convnext_from_shapes(shapes: Shapes, prefix: str = "") -> presets.ConvNextDims:
  """ConvNeXt of torchvision's names: stages at odd numbers, downsampling between them."""
  start = re.escape(prefix)
  stages = range(1, count(shapes, rf"{start}features\.(\d+)\."), 2)
  return presets.ConvNextDims(
      depths=tuple(count(shapes, rf"{start}features\.{i}\.(\d+)\.") for i in stages),
      widths=tuple(shapes[f"{prefix}features.{i}.0.layer_scale"][0] for i in stages),
      classes=shapes[f"{prefix}classifier.2.weight"][0])


def count(names: Mapping[str, Any], pattern: str) -> int:
  """One more than the largest number that `pattern` captures at the start of a name; 0 if none.

  Raises:
    DimsError: for a number that no network has.
  """
  found = (re.match(pattern, name) for name in names)
  number = max((int(m[1]) + 1 for m in found if m), default=0)
  if number > MOST_LAYERS:
    raise DimsError(f"a tensor's name counts to {number}; at most {MOST_LAYERS} layers are read")
  return number


def _refuse(config: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
  wrong = [f"{k}={config[k]!r} (here: {v!r})" for k, v in wanted.items()
           if k in config and config[k] != v]
  if wrong:
    raise DimsError(f"{where}: not the network that is built here: {', '.join(wrong)}")


def _side(value: int | list[int]) -> int:
  if isinstance(value, int):
    return value
  if len(set(value)) != 1:
    raise DimsError(f"config.json: {value} is not square")
  return value[0]
