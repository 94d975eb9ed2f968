"""A folder that diffusers' DiffusionPipeline loads and runs, and nodes for ComfyUI that run it.

  model_index.json, pipeline_unilip.py   the pipeline: its components, and its code
  tokenizer/, mllm/                      transformers' InternVLForConditionalGeneration, which also chats
  connector/, vae/                       what no library has a class for, each with its code
  transformer/, scheduler/               diffusers' SanaTransformer2DModel and DPMSolverMultistepScheduler
  comfyui_unilip/                        a folder for ComfyUI's custom_nodes

The code is that of templates/, PyTorch's, which nothing here imports.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import tokenizers

from unilip_jax.convert import dcae, engine, internvit, qwen2, reading, sana, unilip
from unilip_jax.models import presets

RELEASE = "0.42.1"  # of diffusers that the folder is tested with
_TEMPLATES = epath.Path(__file__).parent / "templates"
_PIPELINE, _CONNECTOR, _DECODER = "pipeline_unilip", "unilip_connector", "unilip_decoder"
_NODES = ("__init__.py", "requirements.txt", "example_workflows/unilip.json")

_CONNECTOR_LAYOUT: reading.Layout = {
    "queries": lambda d: [engine.Rule("latent_queries", "queries/queries", "unbatched")],
    "connector": lambda d: qwen2.stack(d["llm"], d["connector"].depth, "llm_connector.", "connector/"),
    "projector": lambda d: engine.linear("projector", "projector")}
_DECODER_LAYOUT: reading.Layout = {
    "decoder": lambda d: dcae.decoder_rules(d["decoder"], "decoder.", "decoder/")}
_NEEDED = ("vision_tower", "mlp1", "llm", "queries", "connector", "projector", "dit", "decoder")


def files(
    names: set[str], dims: Mapping[str, Any], generate: Mapping[str, Any] | None,
    text: tokenizers.Tokenizer) -> list[unilip.File]:
  """Returns the models of the folder; arguments as of `unilip.component_files`.

  Raises:
    ValueError: if a module is missing.
  """
  if (absent := [name for name in _NEEDED if name not in names]) or generate is None:
    raise ValueError("the format diffusers holds a model that generates; these weights have only "
                     f"{', '.join(sorted(names))}, not {', '.join(absent) or 'how to generate'}")
  vit, llm, connector, dit = (dims[name] for name in ("vision_tower", "llm", "connector", "dit"))
  table = lambda layout: unilip.tables(layout, names, dims)
  model = "diffusion_pytorch_model"  # as diffusers names it
  index = {
      "_class_name": [_PIPELINE, "UniLIPPipeline"], "_diffusers_version": RELEASE,
      "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
      "mllm": ["transformers", "InternVLForConditionalGeneration"],
      "connector": [_CONNECTOR, "UniLIPConnector"], "transformer": ["diffusers", "SanaTransformer2DModel"],
      "vae": [_DECODER, "UniLIPDecoder"], "scheduler": ["diffusers", "DPMSolverMultistepScheduler"]}
  nodes = {f"../comfyui_unilip/{name}": _template(f"comfyui_unilip/{name}") for name in _NODES}
  return [
      unilip.File("mllm", "model", table(internvit.TRANSFORMERS), {
          "config.json": internvit.internvl_to_config(vit, llm, text),
          "generation_config.json": qwen2.generation_config(text), "../model_index.json": index,
          f"../{_PIPELINE}.py": _template(f"{_PIPELINE}.py"), **nodes}, language="../tokenizer"),
      unilip.File("connector", model, table(_CONNECTOR_LAYOUT), {
          "config.json": _own("UniLIPConnector", {
              "queries": connector.queries, "caption_width": dit.caption_width,
              "condition": generate["condition"],
              "layers": qwen2.to_config(dataclasses.replace(llm, depth=connector.depth), None)}),
          f"{_CONNECTOR}.py": _template(f"{_CONNECTOR}.py")}),
      unilip.File("transformer", model, table(sana.TRANSFORMER), {
          "config.json": sana.to_config(dit), "../scheduler/scheduler_config.json": sana.SCHEDULER}),
      unilip.File("vae", model, table(_DECODER_LAYOUT), {
          "config.json": _own("UniLIPDecoder", {
              "scaling_factor": generate["factor"], "layers": _decoder_arguments(dims["decoder"])}),
          f"{_DECODER}.py": _template(f"{_DECODER}.py")})]


def _template(name: str) -> str:
  return (_TEMPLATES / name).read_text()


def _own(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
  return {"_class_name": name, "_diffusers_version": RELEASE, **fields}


def _decoder_arguments(dims: presets.DcaeDims) -> dict[str, Any]:
  """Returns the arguments of the decoder inside of diffusers' AutoencoderDC."""
  return {
      "in_channels": 3, "latent_channels": dims.latent_channels, "attention_head_dim": dims.head_dim,
      "block_type": dims.blocks, "block_out_channels": dims.channels, "layers_per_block": dims.layers,
      "qkv_multiscales": dims.qkv_multiscales, "norm_type": dims.norms, "act_fn": dims.acts,
      "upsample_block_type": dims.resample, "in_shortcut": dims.shortcut, "conv_act_fn": dims.conv_act}
