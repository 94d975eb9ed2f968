"""Reads the dimensions in a model.json into the dataclasses of models/presets.py."""

from collections.abc import Mapping
from typing import Any

from unilip_jax.models import presets
from unilip_jax.models.vision import base as vision


def module_dims(model: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {module: JSON-ready dimensions}; the entry `tokenizer` of a run becomes its four modules."""
  dims = dict(model["modules"])
  if "tokenizer" in dims:
    tokenizer = presets.from_json(presets.TokenizerDims, dims.pop("tokenizer"))
    dims.update(split_tokenizer(tokenizer))
  return dims


def split_tokenizer(dims: presets.TokenizerDims) -> dict[str, Any]:
  """Returns the tokenizer's dimensions by module, JSON-ready."""
  return {
      "vision_tower": presets.to_json(dims.vit),
      "mlp1": {"in_width": dims.vit.token_width, "width": dims.llm_width},
      "latent_head": {
          "depth": dims.latent_depth, "width": dims.llm_width, "channels": dims.latent_channels},
      "decoder": presets.to_json(dims.decoder)}


def tokenizer_dims(model: Mapping[str, Any]) -> presets.TokenizerDims:
  """Returns the dimensions of the tokenizer in a model.json.

  Raises:
    ValueError: if one of the four modules is absent.
  """
  dims = module_dims(model)
  absent = [name for name in ("vision_tower", "mlp1", "latent_head", "decoder") if name not in dims]
  if absent:
    raise ValueError(f"these weights hold no complete tokenizer: they lack {', '.join(absent)} and "
                     f"hold {', '.join(sorted(dims))}")
  return presets.TokenizerDims(
      vit=presets.from_json(vision.VisionDims, dims["vision_tower"]),
      llm_width=dims["mlp1"]["width"],
      latent_depth=dims["latent_head"]["depth"],
      decoder=presets.from_json(presets.DcaeDims, dims["decoder"]))


def vision_dims(model: Mapping[str, Any]) -> presets.TokenizerDims:
  """Returns the dimensions of CLIP tower and mlp1 where a model.json lacks latent head and decoder.

  The decoder of the result has no stages.
  """
  dims = module_dims(model)
  no_decoder = presets.DcaeDims(0, (), (), (), (), 0, (), (), "interpolate")
  return presets.TokenizerDims(
      vit=presets.from_json(vision.VisionDims, dims["vision_tower"]),
      llm_width=dims["mlp1"]["width"], latent_depth=0, decoder=no_decoder)


def unilip_dims(model: Mapping[str, Any]) -> presets.UnilipDims | None:
  """Returns the dimensions of the complete model, or None if a model.json describes only a part."""
  dims = model["modules"]
  if not {"llm", "connector", "dit"} <= set(dims) or "generate" not in model:
    return None
  return presets.UnilipDims(
      tokenizer=tokenizer_dims(model),
      llm=presets.from_json(presets.LlmDims, dims["llm"]),
      connector=presets.from_json(presets.ConnectorDims, dims["connector"]),
      dit=presets.from_json(presets.DitDims, dims["dit"]),
      factor=model["generate"]["factor"],
      few_step=model["generate"].get("few_step", ""))
