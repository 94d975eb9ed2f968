"""The files that exports make: which modules each holds, under which names, with which config.json.

The tables are those that read the same files; configs say what dimensions and tokenizer say.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import tokenizers

from unilip_jax.convert import (
  configs_out,
  kinds,
  tables_dcae,
  tables_internvit,
  tables_latent_head,
  tables_projector,
  tables_qwen2,
  tables_sana,
)
from unilip_jax.convert import rules as engine
from unilip_jax.models import presets
from unilip_jax.weights import dims as dims_lib

_VAE = "model.vae_decoder."


@dataclasses.dataclass(frozen=True)
class File:
  """One model's weights.

  Attributes:
    folder: below the export's; "" is itself.
    name: stem of the weights' files.
    tables: {module: its rules}.
    configs: {path below `folder`: content} of JSON files beside them.
    language: whether the tokenizer's files belong there.
  """

  folder: str
  name: str
  tables: Mapping[str, list[engine.Rule]]
  configs: Mapping[str, Any]
  language: bool = False


def pth_tables(model: Mapping[str, Any]) -> dict[str, list[engine.Rule]]:
  """UniLIP's tokenizer checkpoint: {module: rules}.

  Raises:
    ValueError: if model.json describes no whole tokenizer.
  """
  return _by_module(kinds.tokenizer_rules(dims_lib.tokenizer_dims(model)))


def unilip(model: Mapping[str, Any], text: tokenizers.Tokenizer) -> list[File]:
  """UniLIP's published folder.

  Raises:
    ValueError: if model.json describes no whole model.
  """
  dims = dims_lib.unilip_dims(model)
  if dims is None:
    raise ValueError("a UniLIP folder holds the whole model; these weights have only "
                     f"{', '.join(sorted(dims_lib.module_dims(model)))}")
  config = configs_out.unilip(dims, text)
  configs = {"config.json": config, "generation_config.json": configs_out.generation(text)}
  if not configs_out.is_hub_id(config["dit_path"]):
    configs |= {f"{config['dit_path']}/transformer/config.json": configs_out.sana(dims.dit),
                f"{config['dit_path']}/scheduler/scheduler_config.json": configs_out.SCHEDULER,
                f"{config['vae_path']}/config.json": configs_out.dcae(None, dims.tokenizer.decoder)}
  tokenizer = dims.tokenizer
  table = [
      *tables_internvit.rules(tokenizer.vit, "model.vision_tower.", "vision_tower/"),
      *tables_projector.rules("model.multi_modal_projector.", "mlp1/"),
      *tables_latent_head.rules(tokenizer.latent_depth, _VAE, "latent_head/"),
      *tables_dcae.decoder_rules(tokenizer.decoder, f"{_VAE}decoder.", "decoder/"),
      *tables_qwen2.rules(dims.llm, "model.language_model.", "llm/", head="lm_head.weight"),
      *tables_qwen2.connector_rules(dims.llm, dims.connector),
      *tables_sana.rules(dims.dit, "model.dit.", "dit/")]
  return [File("", "model", _by_module(table), configs, language=True)]


def components(model: Mapping[str, Any], text: tokenizers.Tokenizer | None) -> list[File]:
  """Folders for transformers (mllm_hf) and diffusers (dit, vae), and what no library has (unilip).

  Each is there if its modules are; DC-AE's class needs both halves, so that a decoder alone goes to
  UniLIP's own parts.
  """
  dims, files = dims_lib.module_dims(model), []
  parsed = lambda cls, module: presets.from_json(cls, dims[module])
  llm = parsed(presets.LlmDims, "llm") if "llm" in dims else None
  if {"vision_tower", "mlp1", "llm"} <= dims.keys():
    vit = parsed(presets.VitDims, "vision_tower")
    table = [*tables_internvit.rules_transformers(vit, "vision_tower.", "vision_tower/"),
             *tables_projector.rules_transformers("multi_modal_projector.", "mlp1/"),
             *tables_qwen2.rules(llm, "language_model.model.", "llm/",
                                 head="language_model.lm_head.weight")]
    files.append(File("mllm_hf", "model", _by_module(table), {
        "config.json": configs_out.internvl(vit, llm, text),
        "generation_config.json": configs_out.generation(text)}, language=True))
  if "dit" in dims:
    dit = parsed(presets.DitDims, "dit")
    files.append(File(
        "dit/transformer", "diffusion_pytorch_model", _by_module(tables_sana.rules(dit, "", "dit/")),
        {"config.json": configs_out.sana(dit),
         "../scheduler/scheduler_config.json": configs_out.SCHEDULER}))
  if {"encoder", "decoder"} <= dims.keys():
    encoder, decoder = (parsed(presets.DcaeDims, m) for m in ("encoder", "decoder"))
    table = [*tables_dcae.encoder_rules(encoder, "encoder.", "encoder/"),
             *tables_dcae.decoder_rules(decoder, "decoder.", "decoder/")]
    files.append(File("vae", "diffusion_pytorch_model", _by_module(table),
                      {"config.json": configs_out.dcae(encoder, decoder)}))
  files += _own(dims, model, llm, text)
  return files


def _own(dims, model, llm, text) -> list[File]:
  """UniLIP's own parts: latent head, queries, connector, projector, and a decoder without encoder."""
  table, config = [], {"model_type": kinds.UNILIP_PARTS}
  if "latent_head" in dims:
    table += tables_latent_head.rules(dims["latent_head"]["depth"], _VAE, "latent_head/")
  if "decoder" in dims and "encoder" not in dims:
    decoder = presets.from_json(presets.DcaeDims, dims["decoder"])
    table += tables_dcae.decoder_rules(decoder, f"{_VAE}decoder.", "decoder/")
    config["decoder_config"] = configs_out.dcae(None, decoder)
  if "connector" in dims:
    connector = presets.from_json(presets.ConnectorDims, dims["connector"])
    table += tables_qwen2.connector_rules(llm, connector)
    config |= {"text_config": configs_out.qwen2(llm, text), "n_query": connector.queries,
               "connect_layer": connector.depth}
  if "generate" in model:
    config["unilip_factor"] = model["generate"]["factor"]
    config["condition"] = model["generate"]["condition"]
  return [File("unilip", "model", _by_module(table), {"config.json": config})] if table else []


def _by_module(table: list[engine.Rule]) -> dict[str, list[engine.Rule]]:
  grouped: dict[str, list[engine.Rule]] = {}
  for rule in table:
    grouped.setdefault(rule.path.split("/")[0], []).append(rule)
  return grouped
