"""SANA in diffusers (SanaTransformer2DModel): names and config.json, and its sampler's config."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from unilip_jax.convert import dcae, engine, io, reading
from unilip_jax.models import presets

Rule = engine.Rule

# SANA's sampler: DPM-Solver++ 2M midpoint with flow shift 3.
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.32.2",
    "algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "final_sigmas_type": "zero", "flow_shift": 3.0, "lower_order_final": True,
    "num_train_timesteps": 1000, "prediction_type": "flow_prediction", "solver_order": 2,
    "solver_type": "midpoint", "timestep_spacing": "linspace", "use_flow_sigmas": True}
# diffusers computes them; some releases stored them too.
SKIP = (r"(.*\.)?patch_embed\.pos_embed$", "positions: computed, no weight")
# field -> the only value that models/sana.py implements
_ONLY = {"attention_bias": False, "patch_size": 1, "norm_elementwise_affine": False,
         "norm_eps": 1e-6, "guidance_embeds": False, "dropout": 0.0}
_NEEDED = ("num_layers", "num_attention_heads", "attention_head_dim", "caption_channels",
           "num_cross_attention_heads", "cross_attention_head_dim", "in_channels", "mlp_ratio",
           "sample_size")


def rules(dims: presets.DitDims, torch: str, path: str) -> list[Rule]:
  """Returns the transformer's rules."""
  layer, inner, n = f"{torch}transformer_blocks.{{i}}.", f"{path}layers/", dims.depth
  time, caption, linear = f"{torch}time_embed.", f"{torch}caption_projection.", engine.linear
  table = [
      Rule(f"{torch}patch_embed.proj.weight", f"{path}patch_embed/kernel", "conv1x1_linear"),
      Rule(f"{torch}patch_embed.proj.bias", f"{path}patch_embed/bias"),
      *linear(f"{time}emb.timestep_embedder.linear_1", f"{path}time_embed/fc1"),
      *linear(f"{time}emb.timestep_embedder.linear_2", f"{path}time_embed/fc2"),
      *linear(f"{time}linear", f"{path}time_modulation"),
      *linear(f"{caption}linear_1", f"{path}caption/fc1"),
      *linear(f"{caption}linear_2", f"{path}caption/fc2"),
      Rule(f"{torch}caption_norm.weight", f"{path}caption/norm/scale"),
      Rule(f"{torch}scale_shift_table", f"{path}scale_shift"),
      *linear(f"{torch}proj_out", f"{path}out"),
      Rule(f"{layer}scale_shift_table", f"{inner}scale_shift", count=n),
      Rule(tuple(f"{layer}attn1.to_{x}.weight" for x in "qkv"), f"{inner}attn/qkv/kernel", "linear", n),
      *linear(f"{layer}attn1.to_out.0", f"{inner}attn/out", n),
      *linear(f"{layer}attn2.to_q", f"{inner}cross/q", n),
      Rule(tuple(f"{layer}attn2.to_{x}.weight" for x in "kv"), f"{inner}cross/kv/kernel", "linear", n),
      Rule(tuple(f"{layer}attn2.to_{x}.bias" for x in "kv"), f"{inner}cross/kv/bias", count=n),
      *linear(f"{layer}attn2.to_out.0", f"{inner}cross/out", n),
      *dcae.glu_rules(f"{layer}ff.", [f"{inner}ff/{x}" for x in ("up", "depthwise", "down")], n)]
  if dims.qk_norm:
    table += [Rule(f"{layer}{torch_name}.norm_{x}.weight", f"{inner}{name}/norm_{x}/scale", count=n)
              for torch_name, name in (("attn1", "attn"), ("attn2", "cross")) for x in "qk"]
  return table


def positions_of_release(config: Mapping[str, Any]) -> tuple[bool, str]:
  """Returns (whether a plain SANA adds positions, why), from diffusers' config.json.

  diffusers before 0.33 always adds them, later releases only if `interpolation_scale` is a number.
  """
  if config.get("interpolation_scale") is not None:
    return True, f"interpolation_scale is {config['interpolation_scale']}"
  version = str(config.get("_diffusers_version", ""))
  numbers = re.match(r"(\d+)\.(\d+)", version)
  if numbers and (int(numbers[1]), int(numbers[2])) < (0, 33):
    return True, f"written by diffusers {version}, which always adds them"
  return False, (f"written by diffusers {version or 'of no stated version'}, which adds none without "
                 "interpolation_scale")


def positions_note(positions: bool, why: str) -> str:
  return (f"position embedding of the DiT: {'added' if positions else 'none'} ({why}); "
          "--dit_positions=on|off decides otherwise")


def from_config(config: Mapping[str, Any], *, positions: bool) -> presets.DitDims:
  """Returns the dimensions from diffusers' config.json.

  Args:
    config: the parsed file.
    positions: whether sine-cosine positions are added, which the file does not contain.

  Raises:
    DimsError: for entries that are missing, or that this network does not implement.
  """
  wrong = [f"{key}={config[key]!r} (only {value!r})" for key, value in _ONLY.items()
           if config.get(key, value) != value]
  if config.get("qk_norm") not in (None, "rms_norm_across_heads"):
    wrong.append(f"qk_norm={config['qk_norm']!r} (only null or 'rms_norm_across_heads')")
  wrong += [f"{key} is absent" for key in _NEEDED if key not in config]
  if not wrong:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    cross = config["num_cross_attention_heads"] * config["cross_attention_head_dim"]
    for key, value in (("cross_attention_dim", width), ("out_channels", config["in_channels"])):
      if config.get(key) not in (None, value):
        wrong.append(f"{key}={config[key]!r} (only {value})")
    if cross != width:
      wrong.append(f"cross-attention of width {cross} (only {width})")
  if wrong:
    raise reading.DimsError(f"SANA's config.json: {'; '.join(wrong)}")
  return presets.DitDims(
      depth=config["num_layers"], heads=config["num_attention_heads"],
      head_dim=config["attention_head_dim"], cross_heads=config["num_cross_attention_heads"],
      cross_head_dim=config["cross_attention_head_dim"], caption_width=config["caption_channels"],
      channels=config["in_channels"], mlp_ratio=config["mlp_ratio"], grid=config["sample_size"],
      positions=positions, qk_norm=config.get("qk_norm") is not None)


def from_shapes(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, *, positions: bool) -> presets.DitDims:
  """Returns the dimensions from names and shapes; prefix e.g. "model.dit.".

  Raises:
    DimsError: if the width is not a published one: heads and grid leave no trace in shapes.
  """
  block = f"{prefix}transformer_blocks.0."
  width, channels = shapes[f"{prefix}patch_embed.proj.weight"][:2]
  known = {p.dit.width: p.dit for p in map(presets.get, presets.SIZES) if p.llm.vocab > 1000}
  if width not in known:
    raise reading.DimsError(
        f"the DiT's width is {width}, and its number of heads does not follow from shapes; known widths: "
        f"{sorted(known)}. Its config.json is needed, to which dit_path of the folder's config.json leads, "
        "relative to that folder")
  return dataclasses.replace(
      known[width], channels=channels, positions=positions,
      depth=reading.count_layers(shapes, rf"{re.escape(prefix)}transformer_blocks\.(\d+)\."),
      caption_width=shapes[f"{prefix}caption_projection.linear_1.weight"][1],
      mlp_ratio=shapes[f"{block}ff.conv_point.weight"][1] / width,
      qk_norm=f"{block}attn1.norm_q.weight" in shapes)


def to_config(dims: presets.DitDims) -> dict[str, Any]:
  """Returns SanaTransformer2DModel's config.

  Positions are written as a number, which every release takes as such. Without a number, releases before
  0.33 would add them anyway, so that the file names a later one.
  """
  return {
      "_class_name": "SanaTransformer2DModel",
      "_diffusers_version": "0.32.2" if dims.positions else "0.33.0",
      "interpolation_scale": max(dims.grid // 64, 1) if dims.positions else None,
      "attention_bias": False, "attention_head_dim": dims.head_dim,
      "num_attention_heads": dims.heads, "num_cross_attention_heads": dims.cross_heads,
      "cross_attention_head_dim": dims.cross_head_dim, "cross_attention_dim": dims.width,
      "caption_channels": dims.caption_width, "in_channels": dims.channels,
      "out_channels": dims.channels, "mlp_ratio": dims.mlp_ratio, "num_layers": dims.depth,
      "sample_size": dims.grid, "patch_size": 1, "dropout": 0.0, "norm_elementwise_affine": False,
      "norm_eps": 1e-6, **({"qk_norm": "rms_norm_across_heads"} if dims.qk_norm else {})}


TRANSFORMER: reading.Layout = {"dit": lambda d: rules(d["dit"], "", "dit/")}


def read(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads a plain SANA."""
  positions, why = positions_of_release(source.config)
  if options.dit_positions is not None:
    positions, why = options.dit_positions, "as was requested"
  dims = from_config(source.config, positions=positions)
  return reading.Reading(
      reading.parts(TRANSFORMER, {"dit": dims}), [SKIP], [positions_note(positions, why)])
