"""Names of DC-AE's decoder and encoder in diffusers' AutoencoderDC, and its config.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from unilip_jax.convert import rules as engine
from unilip_jax.convert import tables_internvit as names
from unilip_jax.models import dcae_blocks as blocks
from unilip_jax.models import presets

Rule = engine.Rule
_MOST_LAYERS = 100  # of a stage


def decoder_rules(dims: presets.DcaeDims, torch: str, path: str) -> list[Rule]:
  """The decoder.

  Args:
    dims: its sizes and kinds.
    torch: prefix, e.g. "decoder." or "model.vae_decoder.decoder.".
    path: prefix of ours, e.g. "decoder/".
  """
  table = _conv(f"{torch}conv_in", f"{path}conv_in")
  last = len(dims.channels) - 1
  for i in range(len(dims.channels)):
    stage, ours = f"{torch}up_blocks.{i}.", f"{path}up_blocks_{i}/"
    first = int(i < last and dims.layers[i] > 0)  # blocks stand after the upsampling
    if first:
      table += _conv(f"{stage}0.conv", f"{ours}up/conv")
    table += _blocks(dims, i, stage, ours, first)
  table += names.norm(f"{torch}norm_out", f"{path}norm_out")
  return table + _edge(dims, f"{torch}conv_out", f"{path}conv_out")


def encoder_rules(dims: presets.DcaeDims, torch: str, path: str) -> list[Rule]:
  """The encoder; arguments as of `decoder_rules`."""
  table = _edge(dims, f"{torch}conv_in", f"{path}conv_in")
  last = len(dims.channels) - 1
  for i in range(len(dims.channels)):
    stage, ours = f"{torch}down_blocks.{i}.", f"{path}down_blocks_{i}/"
    table += _blocks(dims, i, stage, ours, 0)
    if i < last and dims.layers[i] > 0:
      table += _conv(f"{stage}{dims.layers[i]}.conv", f"{ours}down/conv")
  return table + _conv(f"{torch}conv_out", f"{path}conv_out")


def _conv(torch: str, path: str, bias: bool = True) -> list[Rule]:
  table = [Rule(f"{torch}.weight", f"{path}/kernel", "conv")]
  return [*table, Rule(f"{torch}.bias", f"{path}/bias")] if bias else table


def _edge(dims: presets.DcaeDims, torch: str, path: str) -> list[Rule]:
  """The convolution at the pixels' side; it resamples where the outermost stage is empty."""
  return _conv(torch, path) if dims.layers[0] > 0 else _conv(f"{torch}.conv", f"{path}/conv")


def _norm(kind: str, torch: str, path: str) -> list[Rule]:
  table = names.norm(torch, path)
  if kind == "batch_norm":
    table += [Rule(f"{torch}.running_mean", f"{path}/mean"),
              Rule(f"{torch}.running_var", f"{path}/var")]
  return table


def _blocks(dims, stage: int, torch: str, path: str, first: int) -> list[Rule]:
  table: list[Rule] = []
  for j in range(dims.layers[stage]):
    block, ours = f"{torch}{first + j}.", f"{path}blocks_{j}/"
    norm = dims.norms[stage]
    if dims.blocks[stage] == "ResBlock":
      table += _conv(f"{block}conv1", f"{ours}conv1")
      table += _conv(f"{block}conv2", f"{ours}conv2", bias=False)
      table += _norm(norm, f"{block}norm", f"{ours}norm")
      continue
    attn, our_attn = f"{block}attn.", f"{ours}attn/"
    table += [Rule(f"{attn}{x}.weight", f"{our_attn}{x}/kernel", "linear")
              for x in ("to_q", "to_k", "to_v", "to_out")]
    for s in range(len(dims.qkv_multiscales[stage])):
      scale, our_scale = f"{attn}to_qkv_multiscale.{s}.", f"{our_attn}multiscale_{s}_"
      table += [
          Rule(f"{scale}proj_in.weight", f"{our_scale}in/kernel", "depthwise"),
          Rule(f"{scale}proj_out.weight", f"{our_scale}out/kernel", "grouped1x1")]
    table += _norm(norm, f"{attn}norm_out", f"{our_attn}norm_out")
    mb, our_mb = f"{block}conv_out.", f"{ours}conv_out/"
    table += [
        Rule(f"{mb}conv_inverted.weight", f"{our_mb}conv_inverted/kernel", "conv1x1_linear"),
        Rule(f"{mb}conv_inverted.bias", f"{our_mb}conv_inverted/bias"),
        Rule(f"{mb}conv_depth.weight", f"{our_mb}conv_depth/kernel", "depthwise"),
        Rule(f"{mb}conv_depth.bias", f"{our_mb}conv_depth/bias"),
        Rule(f"{mb}conv_point.weight", f"{our_mb}conv_point/kernel", "conv1x1_linear"),
        *names.norm(f"{mb}norm", f"{our_mb}norm")]
  return table


def dims_from_config(config: Mapping[str, Any]) -> tuple[presets.DcaeDims, presets.DcaeDims]:
  """(encoder, decoder) of diffusers' config.json.

  Raises:
    ValueError: for entries that are missing, or name what these networks do not have.
  """
  if config.get("_class_name", "AutoencoderDC") != "AutoencoderDC":
    raise ValueError(f"config.json describes {config['_class_name']}, not AutoencoderDC")
  if config.get("in_channels", 3) != 3:
    raise ValueError(f"config.json: in_channels is {config['in_channels']}; images here have 3")
  encoder = _half(config, "encoder", "downsample_block_type", blocks.DOWNSAMPLING)
  decoder = _half(config, "decoder", "upsample_block_type", blocks.UPSAMPLING)
  return encoder, decoder


def _half(config: Mapping[str, Any], half: str, resample: str, resamples: Sequence[str]):
  """One half's dimensions; the encoder's norms and activations are no entries of config.json."""
  def entry(name: str) -> Any:
    if name not in config:
      raise ValueError(f"config.json lacks {name!r}: is it AutoencoderDC's, by diffusers >= 0.32?")
    return config[name]

  channels = tuple(entry(f"{half}_block_out_channels"))

  def per_stage(name: str, known: Sequence[str] | None, default: str | None = None) -> tuple:
    value = default or entry(name)
    values = (value,) * len(channels) if isinstance(value, str) else tuple(value)
    if len(values) != len(channels):
      raise ValueError(f"config.json: {name} has {len(values)} entries for {len(channels)} stages")
    return tuple(_check(name, v, known) for v in values) if known else values

  layers = per_stage(f"{half}_layers_per_block", None)
  if not all(type(n) is int and 0 <= n <= _MOST_LAYERS for n in layers):
    raise ValueError(f"config.json: {half}_layers_per_block is {layers}; at most {_MOST_LAYERS} each")
  is_decoder, acts = half == "decoder", tuple(blocks.ACTIVATIONS)
  dims = presets.DcaeDims(
      latent_channels=entry("latent_channels"), channels=channels,
      layers=layers,
      blocks=per_stage(f"{half}_block_types", blocks.BLOCKS),
      qkv_multiscales=tuple(tuple(s) for s in per_stage(f"{half}_qkv_multiscales", None)),
      head_dim=entry("attention_head_dim"),
      norms=per_stage("decoder_norm_types", blocks.NORMS, None if is_decoder else "rms_norm"),
      acts=per_stage("decoder_act_fns", acts, None if is_decoder else "silu"),
      resample=_check(resample, entry(resample), resamples),
      # Entries of later releases, with what earlier ones did.
      shortcut=config.get("decoder_in_shortcut" if is_decoder else "encoder_out_shortcut", True),
      conv_act=_check("decoder_conv_act_fn", config.get("decoder_conv_act_fn", "relu"), acts)
      if is_decoder else "relu",
      scaling_factor=entry("scaling_factor"))
  if dims.shortcut and channels[-1] % dims.latent_channels:
    raise ValueError(f"config.json: the {half}'s deepest width {channels[-1]} is no multiple of "
                     f"latent_channels {dims.latent_channels}, which its shortcut needs")
  return dims


def _check(name: str, value: str, known: Sequence[str]) -> str:
  """The known name that `value` is, whatever its case: config.json has "Conv" and "conv"."""
  spelled = {k.lower(): k for k in known}
  if value.lower() not in spelled:
    raise ValueError(f"config.json: {name} {value!r} is unknown; known: {', '.join(known)}")
  return spelled[value.lower()]
