"""DC-AE in diffusers (AutoencoderDC): names, config.json, and dimensions from shapes.

Activations leave no trace in shapes: without config.json they are SiLU, as in every published DC-AE of
UniLIP.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from unilip_jax.convert import engine, io, reading
from unilip_jax.models import dcae_blocks as blocks
from unilip_jax.models import presets

Rule = engine.Rule
_MAX_STAGE_LAYERS = 100


def decoder_rules(dims: presets.DcaeDims, torch: str, path: str) -> list[Rule]:
  """Returns the decoder's rules."""
  table = engine.conv(f"{torch}conv_in", f"{path}conv_in")
  last = len(dims.channels) - 1
  for i in range(len(dims.channels)):
    stage, inner = f"{torch}up_blocks.{i}.", f"{path}up_blocks_{i}/"
    first = int(i < last and dims.layers[i] > 0)  # blocks come after the upsampling
    if first:
      table += engine.conv(f"{stage}0.conv", f"{inner}up/conv")
    table += _blocks(dims, i, stage, inner, first)
  return [*table, *engine.norm(f"{torch}norm_out", f"{path}norm_out"),
          *_outermost_conv(dims, f"{torch}conv_out", f"{path}conv_out")]


def encoder_rules(dims: presets.DcaeDims, torch: str, path: str) -> list[Rule]:
  """Returns the encoder's rules."""
  table = _outermost_conv(dims, f"{torch}conv_in", f"{path}conv_in")
  last = len(dims.channels) - 1
  for i in range(len(dims.channels)):
    stage, inner = f"{torch}down_blocks.{i}.", f"{path}down_blocks_{i}/"
    table += _blocks(dims, i, stage, inner, 0)
    if i < last and dims.layers[i] > 0:
      table += engine.conv(f"{stage}{dims.layers[i]}.conv", f"{inner}down/conv")
  return table + engine.conv(f"{torch}conv_out", f"{path}conv_out")


def _outermost_conv(dims: presets.DcaeDims, torch: str, path: str) -> list[Rule]:
  """The convolution at the pixels' side; it resamples if the outermost stage is empty."""
  return engine.conv(torch, path) if dims.layers[0] else engine.conv(f"{torch}.conv", f"{path}/conv")


def _norm(kind: str, torch: str, path: str) -> list[Rule]:
  statistics = [Rule(f"{torch}.running_mean", f"{path}/mean"), Rule(f"{torch}.running_var", f"{path}/var")]
  return engine.norm(torch, path) + (statistics if kind == "batch_norm" else [])


def _blocks(dims: presets.DcaeDims, stage: int, torch: str, path: str, first: int) -> list[Rule]:
  table: list[Rule] = []
  for j in range(dims.layers[stage]):
    block, inner, norm = f"{torch}{first + j}.", f"{path}blocks_{j}/", dims.norms[stage]
    if dims.blocks[stage] == "ResBlock":
      table += [*engine.conv(f"{block}conv1", f"{inner}conv1"),
                *engine.conv(f"{block}conv2", f"{inner}conv2", bias=False),
                *_norm(norm, f"{block}norm", f"{inner}norm")]
      continue
    attention = f"{inner}attn/"
    table += [Rule(f"{block}attn.{x}.weight", f"{attention}{x}/kernel", "linear")
              for x in ("to_q", "to_k", "to_v", "to_out")]
    for s in range(len(dims.qkv_multiscales[stage])):
      scale = f"{block}attn.to_qkv_multiscale.{s}."
      table += [*engine.conv(f"{scale}proj_in", f"{attention}multiscale_{s}_in", bias=False),
                Rule(f"{scale}proj_out.weight", f"{attention}multiscale_{s}_out/kernel", "grouped1x1")]
    table += _norm(norm, f"{block}attn.norm_out", f"{attention}norm_out")
    table += glu_rules(f"{block}conv_out.", [f"{inner}conv_out/{x}" for x in (
        "conv_inverted", "conv_depth", "conv_point")])
    table += engine.norm(f"{block}conv_out.norm", f"{inner}conv_out/norm")
  return table


def glu_rules(torch: str, paths: Sequence[str], count: int = 0) -> list[Rule]:
  """Returns the rules of the gated convolutions of DC-AE and SANA: up, depthwise, down at `paths`."""
  up, depth, down = paths
  return [
      Rule(f"{torch}conv_inverted.weight", f"{up}/kernel", "conv1x1_linear", count),
      Rule(f"{torch}conv_inverted.bias", f"{up}/bias", count=count),
      *engine.conv(f"{torch}conv_depth", depth, count),
      Rule(f"{torch}conv_point.weight", f"{down}/kernel", "conv1x1_linear", count)]


def from_config(config: Mapping[str, Any]) -> tuple[presets.DcaeDims, presets.DcaeDims]:
  """Returns the dimensions of (encoder, decoder) from diffusers' config.json.

  Raises:
    DimsError: for entries that are missing, or that these networks do not implement.
  """
  if config.get("_class_name", "AutoencoderDC") != "AutoencoderDC":
    raise reading.DimsError(f"config.json describes {config['_class_name']}, not AutoencoderDC")
  if config.get("in_channels", 3) != 3:
    raise reading.DimsError(f"config.json: in_channels is {config['in_channels']}; images here have 3")
  return (_half(config, "encoder", "downsample_block_type", blocks.DOWNSAMPLING),
          _half(config, "decoder", "upsample_block_type", blocks.UPSAMPLING))


def _half(
    config: Mapping[str, Any], half: str, resample: str, resamples: Sequence[str]) -> presets.DcaeDims:
  """Returns one half's dimensions; the encoder's norms and activations are no entries of config.json."""
  def entry(name: str) -> Any:
    if name not in config:
      raise reading.DimsError(
          f"config.json lacks {name!r}: is it AutoencoderDC's, by diffusers >= 0.32?")
    return config[name]

  channels = tuple(entry(f"{half}_block_out_channels"))

  def per_stage(name: str, known: Sequence[str] | None, default: str | None = None) -> tuple:
    value = default or entry(name)
    values = (value,) * len(channels) if isinstance(value, str) else tuple(value)
    if len(values) != len(channels):
      raise reading.DimsError(
          f"config.json: {name} has {len(values)} entries for {len(channels)} stages")
    return tuple(_known(name, v, known) for v in values) if known else values

  layers = per_stage(f"{half}_layers_per_block", None)
  if not all(type(n) is int and 0 <= n <= _MAX_STAGE_LAYERS for n in layers):
    raise reading.DimsError(
        f"config.json: {half}_layers_per_block is {layers}; at most {_MAX_STAGE_LAYERS} each")
  is_decoder, acts = half == "decoder", tuple(blocks.ACTIVATIONS)
  dims = presets.DcaeDims(
      latent_channels=entry("latent_channels"), channels=channels, layers=layers,
      blocks=per_stage(f"{half}_block_types", blocks.BLOCKS),
      qkv_multiscales=tuple(tuple(s) for s in per_stage(f"{half}_qkv_multiscales", None)),
      head_dim=entry("attention_head_dim"),
      norms=per_stage("decoder_norm_types", blocks.NORMS, None if is_decoder else "rms_norm"),
      acts=per_stage("decoder_act_fns", acts, None if is_decoder else "silu"),
      resample=_known(resample, entry(resample), resamples),
      # Entries of later releases, with the behaviour of earlier ones as default.
      shortcut=config.get("decoder_in_shortcut" if is_decoder else "encoder_out_shortcut", True),
      conv_act=_known("decoder_conv_act_fn", config.get("decoder_conv_act_fn", "relu"), acts)
      if is_decoder else "relu",
      scaling_factor=entry("scaling_factor"))
  if dims.shortcut and channels[-1] % dims.latent_channels:
    raise reading.DimsError(f"config.json: the {half}'s deepest width {channels[-1]} is no multiple of "
                            f"latent_channels {dims.latent_channels}, which its shortcut needs")
  return dims


def _known(name: str, value: str, known: Sequence[str]) -> str:
  """Returns the known name that equals `value` but for case: config.json has "Conv" and "conv"."""
  spelled = {k.lower(): k for k in known}
  if value.lower() not in spelled:
    raise reading.DimsError(f"config.json: {name} {value!r} is unknown; known: {', '.join(known)}")
  return spelled[value.lower()]


def decoder_from_shapes(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> presets.DcaeDims:
  """Returns the decoder's dimensions from names and shapes; prefix e.g. "decoder.".

  Raises:
    DimsError: if head dim or upsampling cannot be derived.
  """
  below = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
  stages = reading.count_layers(below, r"up_blocks\.(\d+)\.")
  inner, latent_channels = below["conv_in.weight"][:2]
  rows, head_dims, upsampling = [], set(), set()
  for i in reversed(range(stages)):
    stage = f"up_blocks.{i}."
    upsample = below.get(f"{stage}0.conv.weight")
    first = 0 if upsample is None else 1
    number = max(0, reading.count_layers(below, rf"{re.escape(stage)}(\d+)\.") - first)
    block = f"{stage}{first}."
    attends = f"{block}attn.to_out.weight" in below
    if number:
      inner = below[f"{block}attn.to_out.weight" if attends else f"{block}conv1.weight"][0]
    if upsample is not None:
      upsampling.add(upsample[0] // inner)
    scale = f"{block}attn.to_qkv_multiscale."
    sides = [below[f"{scale}{s}.proj_in.weight"][-1]
             for s in range(reading.count_layers(below, rf"{re.escape(scale)}(\d+)\."))]
    if sides:
      head_dims.add(below[f"{scale}0.proj_out.weight"][1])
    norm = f"{block}attn.norm_out." if attends else f"{block}norm."
    rows.insert(0, (
        inner, number, "EfficientViTBlock" if attends else "ResBlock", tuple(sides),
        "batch_norm" if f"{norm}running_mean" in below else "rms_norm"))
  channels, layers, kinds, scales, norms = zip(*rows, strict=True) if rows else ((),) * 5
  if len(head_dims) > 1 or (not head_dims and "EfficientViTBlock" in kinds):
    raise reading.DimsError(f"{prefix}: shapes give head dims {sorted(head_dims)}, not one; "
                            "a config.json of AutoencoderDC is needed next to the weights")
  if len(upsampling) != 1 or not upsampling <= {1, 4}:
    raise reading.DimsError(f"{prefix}: the upsampling convolutions multiply channels by "
                            f"{sorted(upsampling)}; 1 (interpolate) or 4 (pixel_shuffle) expected")
  return presets.DcaeDims(
      latent_channels=latent_channels, channels=channels, layers=layers, blocks=kinds,
      qkv_multiscales=scales, head_dim=next(iter(head_dims), 32), norms=norms,
      acts=("silu",) * stages, resample="interpolate" if upsampling == {1} else "pixel_shuffle")


def to_config(encoder: presets.DcaeDims | None, decoder: presets.DcaeDims) -> dict[str, Any]:
  """Returns AutoencoderDC's config; without an encoder its entries mirror the decoder's."""
  mirror = encoder or decoder
  lists = lambda values: [list(v) for v in values]
  down = encoder.resample if encoder else {
      "interpolate": "Conv", "pixel_shuffle": "pixel_unshuffle"}[decoder.resample]
  later = {}  # entries that releases before 0.34 do not have, written only if they change something
  if decoder.conv_act != "relu":
    later["decoder_conv_act_fn"] = decoder.conv_act
  if not decoder.shortcut:
    later["decoder_in_shortcut"] = False
  if encoder and not encoder.shortcut:
    later["encoder_out_shortcut"] = False
  return {
      "_class_name": "AutoencoderDC", "_diffusers_version": "0.32.2", "in_channels": 3,
      "latent_channels": decoder.latent_channels, "attention_head_dim": decoder.head_dim,
      "encoder_block_types": list(mirror.blocks), "decoder_block_types": list(decoder.blocks),
      "encoder_block_out_channels": list(mirror.channels),
      "decoder_block_out_channels": list(decoder.channels),
      "encoder_layers_per_block": list(mirror.layers),
      "decoder_layers_per_block": list(decoder.layers),
      "encoder_qkv_multiscales": lists(mirror.qkv_multiscales),
      "decoder_qkv_multiscales": lists(decoder.qkv_multiscales),
      "downsample_block_type": down, "upsample_block_type": decoder.resample,
      "decoder_norm_types": list(decoder.norms), "decoder_act_fns": list(decoder.acts),
      "scaling_factor": mirror.scaling_factor, **later}


AUTOENCODER: reading.Layout = {
    "encoder": lambda d: encoder_rules(d["encoder"], "encoder.", "encoder/"),
    "decoder": lambda d: decoder_rules(d["decoder"], "decoder.", "decoder/")}


def read(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads both halves of diffusers' AutoencoderDC."""
  encoder, decoder = from_config(source.config)
  return reading.Reading(
      reading.parts(AUTOENCODER, {"encoder": encoder, "decoder": decoder}), [reading.COUNTER])
