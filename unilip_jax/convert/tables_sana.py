"""Names of SANA in diffusers' SanaTransformer2DModel, and its config.json."""

from collections.abc import Mapping
import re
from typing import Any

from unilip_jax.convert import rules as engine
from unilip_jax.convert import tables_internvit as names
from unilip_jax.models import presets

Rule = engine.Rule


def rules(dims: presets.DitDims, torch: str, path: str) -> list[Rule]:
  """The transformer.

  Args:
    dims: its sizes.
    torch: prefix, e.g. "" or "model.dit.".
    path: prefix of ours, e.g. "dit/".
  """
  layer, ours, n = f"{torch}transformer_blocks.{{i}}.", f"{path}layers/", dims.depth
  time, caption = f"{torch}time_embed.", f"{torch}caption_projection."
  table = [
      Rule(f"{torch}patch_embed.proj.weight", f"{path}patch_embed/kernel", "conv1x1_linear"),
      Rule(f"{torch}patch_embed.proj.bias", f"{path}patch_embed/bias"),
      *names.linear(f"{time}emb.timestep_embedder.linear_1", f"{path}time_embed/fc1"),
      *names.linear(f"{time}emb.timestep_embedder.linear_2", f"{path}time_embed/fc2"),
      *names.linear(f"{time}linear", f"{path}time_modulation"),
      *names.linear(f"{caption}linear_1", f"{path}caption/fc1"),
      *names.linear(f"{caption}linear_2", f"{path}caption/fc2"),
      Rule(f"{torch}caption_norm.weight", f"{path}caption/norm/scale"),
      Rule(f"{torch}scale_shift_table", f"{path}scale_shift"),
      *names.linear(f"{torch}proj_out", f"{path}out"),
      Rule(f"{layer}scale_shift_table", f"{ours}scale_shift", count=n),
      Rule(tuple(f"{layer}attn1.to_{x}.weight" for x in "qkv"), f"{ours}attn/qkv/kernel",
           "linear", n),
      *names.linear(f"{layer}attn1.to_out.0", f"{ours}attn/out", n),
      *names.linear(f"{layer}attn2.to_q", f"{ours}cross/q", n),
      Rule(tuple(f"{layer}attn2.to_{x}.weight" for x in "kv"), f"{ours}cross/kv/kernel",
           "linear", n),
      Rule(tuple(f"{layer}attn2.to_{x}.bias" for x in "kv"), f"{ours}cross/kv/bias", count=n),
      *names.linear(f"{layer}attn2.to_out.0", f"{ours}cross/out", n),
      Rule(f"{layer}ff.conv_inverted.weight", f"{ours}ff/up/kernel", "conv1x1_linear", n),
      Rule(f"{layer}ff.conv_inverted.bias", f"{ours}ff/up/bias", count=n),
      Rule(f"{layer}ff.conv_depth.weight", f"{ours}ff/depthwise/kernel", "depthwise", n),
      Rule(f"{layer}ff.conv_depth.bias", f"{ours}ff/depthwise/bias", count=n),
      Rule(f"{layer}ff.conv_point.weight", f"{ours}ff/down/kernel", "conv1x1_linear", n)]
  if dims.qk_norm:
    table += [Rule(f"{layer}{theirs}.norm_{x}.weight", f"{ours}{mine}/norm_{x}/scale", count=n)
              for theirs, mine in (("attn1", "attn"), ("attn2", "cross")) for x in "qk"]
  return table


def positions_of_era(config: Mapping[str, Any]) -> tuple[bool, str]:
  """(whether a plain SANA adds positions, why), from diffusers' config.json."""
  if config.get("interpolation_scale") is not None:
    return True, f"interpolation_scale is {config['interpolation_scale']}"
  version = str(config.get("_diffusers_version", ""))
  numbers = re.match(r"(\d+)\.(\d+)", version)
  if numbers and (int(numbers[1]), int(numbers[2])) < (0, 33):
    return True, f"written by diffusers {version}, which always adds them"
  return False, (f"written by diffusers {version or 'of no stated version'}, which adds none without "
                 "interpolation_scale")


def dims_from_config(config: Mapping[str, Any], *, positions: bool) -> presets.DitDims:
  """Sizes from diffusers' config.json.

  Args:
    config: the parsed file.
    positions: whether sine-cosine positions are added. The file does not say: diffusers before
      0.33 always adds them, later releases do so only where `interpolation_scale` is a number.

  Raises:
    ValueError: for entries that are missing, or name what this network does not have.
  """
  fixed = {"attention_bias": False, "patch_size": 1, "norm_elementwise_affine": False,
           "norm_eps": 1e-6, "guidance_embeds": False, "dropout": 0.0}
  wrong = [f"{key}={config[key]!r} (only {value!r})" for key, value in fixed.items()
           if config.get(key, value) != value]
  if config.get("qk_norm") not in (None, "rms_norm_across_heads"):
    wrong.append(f"qk_norm={config['qk_norm']!r} (only null or 'rms_norm_across_heads')")
  needed = ("num_layers", "num_attention_heads", "attention_head_dim", "caption_channels",
            "num_cross_attention_heads", "cross_attention_head_dim", "in_channels", "mlp_ratio",
            "sample_size")
  wrong += [f"{key} is absent" for key in needed if key not in config]
  if not wrong:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    cross = config["num_cross_attention_heads"] * config["cross_attention_head_dim"]
    for key, value in (("cross_attention_dim", width), ("out_channels", config["in_channels"])):
      if config.get(key) not in (None, value):
        wrong.append(f"{key}={config[key]!r} (only {value})")
    if cross != width:
      wrong.append(f"cross-attention of width {cross} (only {width})")
  if wrong:
    raise ValueError(f"SANA's config.json: {'; '.join(wrong)}")
  return presets.DitDims(
      depth=config["num_layers"], heads=config["num_attention_heads"],
      head_dim=config["attention_head_dim"], cross_heads=config["num_cross_attention_heads"],
      cross_head_dim=config["cross_attention_head_dim"], caption_width=config["caption_channels"],
      channels=config["in_channels"], mlp_ratio=config["mlp_ratio"], grid=config["sample_size"],
      positions=positions, qk_norm=config.get("qk_norm") is not None)
