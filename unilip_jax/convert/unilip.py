"""UniLIP's own files: the published folder, the tokenizer's `.pth`, and exports as components.

A layout gives the rules of each module; reading and writing use the same layouts.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import tokenizers

from unilip_jax.convert import dcae, engine, internvit, io, modules, qwen2, reading, sana
from unilip_jax.data import text as text_lib
from unilip_jax.models import presets

Rule = engine.Rule
Shapes = Mapping[str, tuple[int, ...]]
FOLDER_TYPE, PARTS_TYPE = "unilip_internvl", "unilip_parts"  # model_type; the latter is of exports alone
_VAE = "model.vae_decoder."

# LLM's width -> where the official code finds the components of the published sizes.
_HUB = {
    896: {"mllm_path": "OpenGVLab/InternVL3-1B", "mllm_hf_path": "OpenGVLab/InternVL3-1B-hf",
          "dit_path": "Efficient-Large-Model/Sana_600M_512px_diffusers"},
    1536: {"mllm_path": "OpenGVLab/InternVL3-2B", "mllm_hf_path": "OpenGVLab/InternVL3-2B-hf",
           "dit_path": "Efficient-Large-Model/Sana_1600M_512px_diffusers"}}
_HUB_VAE = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
_LOCAL = {"mllm_path": "mllm", "mllm_hf_path": "mllm_hf", "dit_path": "dit", "vae_path": "vae"}


def latent_head_rules(depth: int, torch: str, path: str) -> list[Rule]:
  """Returns the latent head's rules: `down_blocks.N.mlp.{0,1,3}` and `down_mlp.{0,1,3}`."""
  block, inner = f"{torch}down_blocks.{{i}}.mlp.", f"{path}down_blocks/layers/"
  last, out = f"{torch}down_mlp.", f"{path}down_mlp/"
  return [*engine.norm(f"{block}0", f"{inner}norm", depth),
          *engine.linear(f"{block}1", f"{inner}fc1", depth),
          *engine.linear(f"{block}3", f"{inner}fc2", depth),
          *engine.norm(f"{last}0", f"{out}norm"), *engine.linear(f"{last}1", f"{out}fc1"),
          *engine.linear(f"{last}3", f"{out}fc2")]


PTH: reading.Layout = {
    "vision_tower": lambda d: internvit.rules(d["vision_tower"], "encoder.", "vision_tower/"),
    "latent_head": lambda d: latent_head_rules(d["latent_head"].depth, "", "latent_head/"),
    "mlp1": lambda d: internvit.mlp1_rules("mlp1.", "mlp1/"),
    "decoder": lambda d: dcae.decoder_rules(d["decoder"], "decoder.", "decoder/")}

FOLDER: reading.Layout = {
    "vision_tower": lambda d: internvit.rules(
        d["vision_tower"], "model.vision_tower.", "vision_tower/"),
    "mlp1": lambda d: internvit.mlp1_rules("model.multi_modal_projector.", "mlp1/"),
    "latent_head": lambda d: latent_head_rules(d["latent_head"].depth, _VAE, "latent_head/"),
    "decoder": lambda d: dcae.decoder_rules(d["decoder"], f"{_VAE}decoder.", "decoder/"),
    "llm": lambda d: qwen2.rules(d["llm"], "model.language_model.", "llm/", head="lm_head.weight"),
    "queries": lambda d: [Rule("model.latent_queries", "queries/queries", "unbatched")],
    "connector": lambda d: qwen2.stack(
        d["llm"], d["connector"].depth, "model.llm_connector.", "connector/"),
    "projector": lambda d: engine.linear("model.projector", "projector"),
    "dit": lambda d: sana.rules(d["dit"], "model.dit.", "dit/")}


def _latent_head_from_shapes(shapes: Shapes, prefix: str) -> modules.LatentHeadDims:
  channels, width = shapes[f"{prefix}down_mlp.1.weight"]
  depth = reading.count_layers(shapes, rf"{re.escape(prefix)}down_blocks\.(\d+)\.")
  return modules.LatentHeadDims(depth, width, channels)


def _connector_dims(source: io.Source, llm: presets.LlmDims) -> dict[str, Any]:
  """Returns the dimensions of queries, connector and projector."""
  config = source.config
  connector = presets.ConnectorDims(depth=config["connect_layer"], queries=config["n_query"])
  width, in_width = source.tensors.shapes["model.projector.weight"]
  return {"queries": modules.QueriesDims(connector.queries, llm.width), "connector": connector,
          "projector": modules.WidthDims(in_width, width)}


def _generate(config: Mapping[str, Any]) -> dict[str, Any]:
  return {"factor": float(config["unilip_factor"]), "condition": config.get("condition", "both")}


def read_pth(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads UniLIP's tokenizer checkpoint, which has no config.json."""
  shapes = source.tensors.shapes
  dims = {"vision_tower": internvit.from_shapes(shapes, "encoder.", options.vit_heads),
          "mlp1": internvit.mlp1_from_shapes(shapes, "mlp1.1.weight"),
          "latent_head": _latent_head_from_shapes(shapes, ""),
          "decoder": dcae.decoder_from_shapes(shapes, "decoder.")}
  return reading.Reading(
      reading.parts(PTH, dims), [reading.COUNTER],
      [f"dimensions come from shapes: {dims['vision_tower'].heads} ViT heads and DC-AE's activations "
       f"({dims['decoder'].acts[0]}) are assumed"])


def read_folder(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads the complete model."""
  shapes, config = source.tensors.shapes, source.config
  vit = internvit.from_config(config)
  vae_config = _component_config(source, "vae_path", "")
  if vae_config is not None:
    decoder = dcae.from_config(vae_config)[1]
    notes = [f"decoder's dimensions come from {config['vae_path']}/config.json"]
  else:
    decoder = dcae.decoder_from_shapes(shapes, f"{_VAE}decoder.")
    notes = [f"decoder's dimensions come from shapes: activations ({decoder.acts[0]}) are assumed"]
  llm, skip, llm_notes = qwen2.of_source(
      source, config["text_config"], "model.language_model.", "lm_head.weight")
  positions = True if options.dit_positions is None else options.dit_positions
  why = "UniLIP was trained with them" if options.dit_positions is None else "as was requested"
  dit_config = _component_config(source, "dit_path", "transformer")
  if dit_config is not None:
    dit = sana.from_config(dit_config, positions=positions)
    dit_note = f"DiT's dimensions come from {config['dit_path']}/transformer/config.json"
  else:
    dit = sana.from_shapes(shapes, "model.dit.", positions=positions)
    dit_note = (
        f"DiT's dimensions come from shapes: {dit.heads} heads and a position grid of "
        f"{dit.grid}×{dit.grid} are assumed, since dit_path={config.get('dit_path')!r} leads to no "
        "transformer/config.json in this folder")
  dims = {"vision_tower": vit,
          "mlp1": internvit.mlp1_from_shapes(shapes, "model.multi_modal_projector.1.weight"),
          "decoder": decoder, "latent_head": _latent_head_from_shapes(shapes, _VAE), "llm": llm,
          **_connector_dims(source, llm), "dit": dit}
  return reading.Reading(
      reading.parts(FOLDER, dims),
      [reading.COUNTER, *skip, (rf"model\.dit\.{sana.SKIP[0]}", sana.SKIP[1])],
      [*notes, *llm_notes, dit_note, sana.positions_note(positions, why)], _generate(config))


def _component_config(source: io.Source, field: str, below: str) -> dict[str, Any] | None:
  """Returns config.json of a component to which a UniLIP folder leads, if it is there."""
  place = source.config.get(field)
  return io.read_config(source.path / str(place) / below) if place else None


def read_parts(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads the modules of UniLIP for which no library has a class; each is there or not."""
  shapes, config, dims = source.tensors.shapes, source.config, {}
  if f"{_VAE}decoder.conv_in.weight" in shapes:
    dims["decoder"] = dcae.from_config(config["decoder_config"])[1]
  if f"{_VAE}down_mlp.1.weight" in shapes:
    dims["latent_head"] = _latent_head_from_shapes(shapes, _VAE)
  names = list(dims)
  if "model.latent_queries" in shapes:
    text = config["text_config"]
    dims["llm"] = qwen2.from_config(text, vocab=text["vocab_size"], tied=text["tie_word_embeddings"])
    dims |= _connector_dims(source, dims["llm"])
    names += ["queries", "connector", "projector"]
  return reading.Reading(
      [part for part in reading.parts(FOLDER, dims) if part.module in names],
      generate=_generate(config) if "unilip_factor" in config else None)


@dataclasses.dataclass(frozen=True)
class File:
  """One model's weights in an export.

  Attributes:
    folder: below the export's; "" is the export's own.
    name: stem of the weights' files.
    tables: {module: its rules}.
    configs: {path relative to `folder`: content} of files stored with them: text, or an object of JSON.
    language: folder of the tokenizer's files, relative to `folder`; None for a model that has none.
  """

  folder: str
  name: str
  tables: Mapping[str, list[Rule]]
  configs: Mapping[str, Any]
  language: str | None = None


def tables(layout: reading.Layout, names: Any, dims: Mapping[str, Any]) -> dict[str, list[Rule]]:
  """Returns {module: rules} of the modules `names` in a layout's order, for parsed dimensions."""
  return {name: rules(dims) for name, rules in layout.items() if name in names}


def folder_files(
    names: set[str], dims: Mapping[str, Any], generate: Mapping[str, Any] | None,
    text: tokenizers.Tokenizer) -> list[File]:
  """Returns the published layout, one folder with everything; arguments as of `component_files`.

  Raises:
    ValueError: if a module is missing.
  """
  if (absent := [name for name in FOLDER if name not in names]) or generate is None:
    raise ValueError(f"the format unilip holds the complete model; these weights have only "
                     f"{', '.join(sorted(names))}, not {', '.join(absent) or 'how to generate'}")
  vit, decoder, llm, connector, dit = (
      dims[name] for name in ("vision_tower", "decoder", "llm", "connector", "dit"))
  published = (presets.get(size) for size in ("1b", "3b"))
  paths = _LOCAL
  if any((p.llm.width, p.dit.width) == (llm.width, dit.width) for p in published):
    paths = _HUB[llm.width] | {"vae_path": _HUB_VAE}
  config = {
      "architectures": ["UniLIP_InternVLForCausalLM"], "model_type": FOLDER_TYPE, **paths,
      "n_query": connector.queries, "connect_layer": connector.depth,
      "unilip_factor": generate["factor"], "downsample_ratio": 0.5, "image_aspect_ratio": "square",
      "image_seq_length": (vit.image_size // vit.pixels_per_token) ** 2,
      "image_token_id": text.token_to_id(text_lib.IMAGE_SLOT),
      "pad_token_id": text.token_to_id(text_lib.PAD), "mm_use_im_patch_token": False,
      "mm_use_im_start_end": False, "projector_hidden_act": "gelu", "vision_feature_layer": -1,
      "vision_feature_select_strategy": "default", "tie_word_embeddings": llm.tied,
      "text_config": qwen2.to_config(llm, text), "vision_config": internvit.to_config(vit)}
  configs = {"config.json": config, "generation_config.json": qwen2.generation_config(text)}
  if paths is _LOCAL:
    configs |= {f"{paths['dit_path']}/transformer/config.json": sana.to_config(dit),
                f"{paths['dit_path']}/scheduler/scheduler_config.json": sana.SCHEDULER,
                f"{paths['vae_path']}/config.json": dcae.to_config(None, decoder)}
  return [File("", "model", tables(FOLDER, names, dims), configs, language="")]


def component_files(
    names: set[str], dims: Mapping[str, Any], generate: Mapping[str, Any] | None,
    text: tokenizers.Tokenizer | None) -> list[File]:
  """Returns folders for transformers (mllm_hf) and diffusers (dit, vae), and `unilip` with the rest.

  Each is there if its modules are. DC-AE's class needs both halves, so that a decoder alone goes to
  `unilip`.

  Args:
    names: of the modules.
    dims: {module: parsed dimensions}.
    generate: of model.json.
    text: the language model's tokenizer.
  """
  files = []
  if names >= {"vision_tower", "mlp1", "llm"}:
    files.append(File(
        "mllm_hf", "model", tables(internvit.TRANSFORMERS, names, dims), {
            "config.json": internvit.internvl_to_config(dims["vision_tower"], dims["llm"], text),
            "generation_config.json": qwen2.generation_config(text)}, language=""))
  if "dit" in names:
    files.append(File(
        "dit/transformer", "diffusion_pytorch_model", tables(sana.TRANSFORMER, names, dims), {
            "config.json": sana.to_config(dims["dit"]),
            "../scheduler/scheduler_config.json": sana.SCHEDULER}))
  if names >= {"encoder", "decoder"}:
    files.append(File(
        "vae", "diffusion_pytorch_model", tables(dcae.AUTOENCODER, names, dims),
        {"config.json": dcae.to_config(dims["encoder"], dims["decoder"])}))
  own = {"latent_head", "queries", "connector", "projector"} & names
  if "encoder" not in names:
    own |= {"decoder"} & names
  if own:
    files.append(File("unilip", "model", tables(FOLDER, own, dims),
                      {"config.json": _parts_config(own, dims, generate, text)}))
  return files


def _parts_config(own: set[str], dims, generate, text) -> dict[str, Any]:
  config: dict[str, Any] = {"model_type": PARTS_TYPE}
  if "decoder" in own:
    config["decoder_config"] = dcae.to_config(None, dims["decoder"])
  if "connector" in own:
    config |= {"text_config": qwen2.to_config(dims["llm"], text),
               "n_query": dims["connector"].queries, "connect_layer": dims["connector"].depth}
  if generate is not None:
    config |= {"unilip_factor": generate["factor"], "condition": generate["condition"]}
  return config
