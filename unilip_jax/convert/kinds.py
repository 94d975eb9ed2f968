"""The kinds of weights that load: a table, each row with its predicate and its reading.

A new kind is one row of KINDS and one function that names modules, dimensions and rules. The first
is recognised by config.json, or by names of tensors where there is none.
"""

from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any

from unilip_jax.convert import (
  dims,
  modules,
  read,
  sources,
  tables_dcae,
  tables_internvit,
  tables_latent_head,
  tables_losses,
  tables_projector,
  tables_qwen2,
  tables_sana,
)
from unilip_jax.convert import rules as engine
from unilip_jax.models import presets
from unilip_jax.weights import dims as dims_lib

Part, Reading, Source = sources.Part, sources.Reading, sources.Source
Options = sources.Options
UNILIP, UNILIP_PARTS = "unilip_internvl", "unilip_parts"  # model_type; the latter is our export's
_ROPE = (r".*rotary_emb\.inv_freq$", "rotary frequencies: computed, no weight")
_TIED = "output head of a tied model: it is the embedding"
COUNTER = (r".*\.num_batches_tracked$", "batch norm's step counter: no weight")


@dataclasses.dataclass(frozen=True)
class Kind:
  """A recognisable kind of weights.

  Attributes:
    name: for messages.
    matches: whether a source is of this kind.
    read: (source, options) -> Reading.
  """

  name: str
  matches: Callable[[Source], bool]
  read: Callable[[Source, Options], Reading]


def kind_of(source: Source) -> Kind:
  """The row of KINDS that a source belongs to.

  Raises:
    read.ReadError: if it is of no known kind, or of several.
  """
  found = [kind for kind in KINDS if kind.matches(source)]
  if len(found) == 1:
    return found[0]
  if found:
    raise read.ReadError(f"{source.path} could be {' or '.join(k.name for k in found)}")
  some = ", ".join(list(source.tensors)[:4])
  said = source.config.get("model_type") or source.config.get("_class_name")
  raise read.ReadError(
      f"{source.path} is of no known kind (config.json says {said!r}; tensors {some}, …). "
      f"Known: {'; '.join(k.name for k in KINDS)}")


def read_source(source: Source, options: Options) -> tuple[Kind, Reading]:
  """A source's kind and how it is to be read.

  Raises:
    read.ReadError: if its kind, dimensions or a tensor that tells them are not to be had.
  """
  kind = kind_of(source)
  try:
    reading = kind.read(source, options)
    for part in reading.parts:
      if part.dims:
        modules.validate(part.module, part.dims)
    return kind, reading
  except KeyError as error:
    raise read.ReadError(
        f"{source.path}: {kind.name}: config.json or tensors lack {error}") from error
  except (TypeError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
    raise read.ReadError(f"{source.path}: {kind.name}: an entry of config.json, or a tensor's shape, is "
                         f"of the wrong kind: {error}") from error
  except ValueError as error:
    raise read.ReadError(f"{source.path}: {kind.name}: {error}") from error


def _has(*names: str) -> Callable[[Source], bool]:
  return lambda source: all(name in source.tensors for name in names)


def _says(field: str, value: str) -> Callable[[Source], bool]:
  return lambda source: source.config.get(field) == value


def _internvl_original(source: Source, options: Options) -> Reading:
  vit = dims.vit_from_config(source.config)
  mlp1 = dims.mlp1_from_shapes(source.tensors.shapes, "mlp1.1.weight")
  llm, skip, notes = _llm(source, source.config["llm_config"], "language_model.model.",
                          "language_model.lm_head.weight")
  return Reading(
      [Part("vision_tower", presets.to_json(vit),
            tables_internvit.rules(vit, "vision_model.", "vision_tower/")),
       Part("mlp1", mlp1, tables_projector.rules("mlp1.", "mlp1/")), llm], skip, notes)


def _internvl_transformers(source: Source, options: Options) -> Reading:
  """Old names start with `vision_tower.`, new ones with `model.vision_tower.`."""
  vit = dims.vit_from_config(source.config)
  new = any(n.startswith("model.vision_tower.") for n in source.tensors)
  prefix = "model." if new else ""
  first = f"{prefix}multi_modal_projector.linear_1.weight"
  if first not in source.tensors:
    raise read.ReadError(f"{first} is absent; found {', '.join(list(source.tensors)[:4])}, …")
  body, head = (("model.language_model.", "lm_head.weight") if new else
                ("language_model.model.", "language_model.lm_head.weight"))
  llm, skip, notes = _llm(source, source.config["text_config"], body, head)
  return Reading(
      [Part("vision_tower", presets.to_json(vit), tables_internvit.rules_transformers(
          vit, f"{prefix}vision_tower.", "vision_tower/")),
       Part("mlp1", dims.mlp1_from_shapes(source.tensors.shapes, first),
            tables_projector.rules_transformers(f"{prefix}multi_modal_projector.", "mlp1/")), llm],
      skip, notes)


def _llm(source: Source, text: Mapping[str, Any], body: str, head: str):
  """(part, what is skipped, notes) of a language model; body e.g. "model.language_model."."""
  shapes, embedding = source.tensors.shapes, f"{body}embed_tokens.weight"
  # transformers 5 writes the entry at both levels, and they may differ: then the tensors tell.
  said = {level["tie_word_embeddings"] for level in (text, source.config)
          if level.get("tie_word_embeddings") is not None}
  tied = said.pop() if len(said) == 1 else head not in shapes
  llm = dims.llm_from_config(text, shapes, embedding, tied=tied)
  skip, notes = [_ROPE], [f"vocabulary of {llm.vocab} rows, {llm.rows} here; "
                          f"the head is {'the embedding (tied)' if llm.tied else 'its own'}"]
  if text.get("vocab_size") not in (None, llm.vocab):
    notes.append(f"config.json says vocab_size {text['vocab_size']}; the tensor counts")
  if llm.tied:
    skip.append((re.escape(head) + "$", _TIED))
  part = Part("llm", presets.to_json(llm), tables_qwen2.rules(llm, body, "llm/", head=head))
  return part, skip, notes


def _sana(source: Source, options: Options) -> Reading:
  positions, why = tables_sana.positions_of_era(source.config)
  if options.dit_positions is not None:
    positions, why = options.dit_positions, "as was asked for"
  dit = tables_sana.dims_from_config(source.config, positions=positions)
  return Reading([Part("dit", presets.to_json(dit), tables_sana.rules(dit, "", "dit/"))],
                 [_POSITIONS], [_position_note(positions, why)])


# diffusers computes them; some releases stored them too.
_POSITIONS = (r"(.*\.)?patch_embed\.pos_embed$", "positions: computed, no weight")


def _position_note(positions: bool, why: str) -> str:
  return (f"position embedding of the DiT: {'added' if positions else 'none'} ({why}); "
          "--dit_positions=on|off decides otherwise")


def _autoencoder_dc(source: Source, options: Options) -> Reading:
  encoder, decoder = tables_dcae.dims_from_config(source.config)
  return Reading(
      [Part("encoder", presets.to_json(encoder),
            tables_dcae.encoder_rules(encoder, "encoder.", "encoder/")),
       Part("decoder", presets.to_json(decoder),
            tables_dcae.decoder_rules(decoder, "decoder.", "decoder/"))], [COUNTER])


def tokenizer_rules(tokenizer: presets.TokenizerDims) -> list[engine.Rule]:
  """The whole tokenizer in `.pth` layout."""
  return [
      *tables_internvit.rules(tokenizer.vit, "encoder.", "vision_tower/"),
      *tables_latent_head.rules(tokenizer.latent_depth, "", "latent_head/"),
      *tables_projector.rules("mlp1.", "mlp1/"),
      *tables_dcae.decoder_rules(tokenizer.decoder, "decoder.", "decoder/")]


def _unilip_pth(source: Source, options: Options) -> Reading:
  shapes = source.tensors.shapes
  vit = dims.vit_from_shapes(shapes, "encoder.", options.vit_heads)
  head = dims.latent_head_from_shapes(shapes, "")
  decoder = dims.decoder_from_shapes(shapes, "decoder.")
  tokenizer = presets.TokenizerDims(vit, head["width"], head["depth"], decoder)
  table = tokenizer_rules(tokenizer)
  return Reading(
      [Part(module, module_dims, [r for r in table if r.path.startswith(f"{module}/")])
       for module, module_dims in dims_lib.split_tokenizer(tokenizer).items()],
      [COUNTER], [f"dimensions come from shapes: {vit.heads} ViT heads and DC-AE's activations "
                   f"({decoder.acts[0]}) are assumed"])


def _unilip_folder(source: Source, options: Options) -> Reading:
  """The whole model; the recorded `keys_unilip_hf.json` lists its names."""
  shapes, config, vae = source.tensors.shapes, source.config, "model.vae_decoder."
  vit = dims.vit_from_config(config)
  vae_config = _component_config(source, "vae_path", "")
  if vae_config is not None:
    decoder = tables_dcae.dims_from_config(vae_config)[1]
    notes = [f"decoder's dimensions come from {config['vae_path']}/config.json"]
  else:
    decoder = dims.decoder_from_shapes(shapes, f"{vae}decoder.")
    notes = [f"decoder's dimensions come from shapes: activations ({decoder.acts[0]}) are assumed"]
  llm, skip, more = _llm(source, config["text_config"], "model.language_model.", "lm_head.weight")
  positions = True if options.dit_positions is None else options.dit_positions
  why = "UniLIP was trained with them" if options.dit_positions is None else "as was asked for"
  dit_config = _component_config(source, "dit_path", "transformer")
  if dit_config is not None:
    dit = tables_sana.dims_from_config(dit_config, positions=positions)
    more.append(f"DiT's dimensions come from {config['dit_path']}/transformer/config.json")
  else:
    dit = dims.dit_from_shapes(shapes, "model.dit.", positions=positions)
    more.append(f"DiT's dimensions come from shapes: {dit.heads} heads are assumed")
  more.append(_position_note(positions, why))
  head = dims.latent_head_from_shapes(shapes, vae)
  return Reading(
      [Part("vision_tower", presets.to_json(vit),
            tables_internvit.rules(vit, "model.vision_tower.", "vision_tower/")),
       Part("mlp1", dims.mlp1_from_shapes(shapes, "model.multi_modal_projector.1.weight"),
            tables_projector.rules("model.multi_modal_projector.", "mlp1/")),
       Part("decoder", presets.to_json(decoder),
            tables_dcae.decoder_rules(decoder, f"{vae}decoder.", "decoder/")),
       Part("latent_head", head, tables_latent_head.rules(head["depth"], vae, "latent_head/")),
       llm, *_connector_parts(source, presets.from_json(presets.LlmDims, llm.dims)),
       Part("dit", presets.to_json(dit), tables_sana.rules(dit, "model.dit.", "dit/"))],
      [COUNTER, *skip, (rf"model\.dit\.{_POSITIONS[0]}", _POSITIONS[1])], [*notes, *more],
      _generate(config))


def _unilip_own(source: Source, options: Options) -> Reading:
  """What of UniLIP no library has a class for (layouts.py); each part is there or not."""
  shapes, config, vae = source.tensors.shapes, source.config, "model.vae_decoder."
  parts = []
  if f"{vae}decoder.conv_in.weight" in shapes:
    decoder = tables_dcae.dims_from_config(config["decoder_config"])[1]
    parts.append(Part("decoder", presets.to_json(decoder),
                      tables_dcae.decoder_rules(decoder, f"{vae}decoder.", "decoder/")))
  if f"{vae}down_mlp.1.weight" in shapes:
    head = dims.latent_head_from_shapes(shapes, vae)
    parts.append(Part("latent_head", head,
                      tables_latent_head.rules(head["depth"], vae, "latent_head/")))
  if "model.latent_queries" in shapes:
    text = config["text_config"]
    llm = dims.llm_from_config(
        text, {"": (text["vocab_size"],)}, "", tied=text["tie_word_embeddings"])
    parts += _connector_parts(source, llm)
  return Reading(parts, generate=_generate(config) if "unilip_factor" in config else None)


def _connector_parts(source: Source, llm: presets.LlmDims) -> list[Part]:
  """Queries, connector and projector."""
  config = source.config
  connector = presets.ConnectorDims(depth=config["connect_layer"], queries=config["n_query"])
  projector = source.tensors.shapes["model.projector.weight"]
  table = tables_qwen2.connector_rules(llm, connector)
  own = {"queries": {"count": connector.queries, "width": llm.width},
         "connector": presets.to_json(connector),
         "projector": {"in_width": projector[1], "width": projector[0]}}
  return [Part(module, module_dims, [r for r in table if r.path.startswith(f"{module}/")])
          for module, module_dims in own.items()]


def _generate(config: Mapping[str, Any]) -> dict[str, Any]:
  return {"factor": float(config["unilip_factor"]), "condition": config.get("condition", "both")}


def _component_config(source: Source, field: str, below: str) -> dict | None:
  """config.json of a component that a UniLIP folder leads to, if it is there."""
  place = source.config.get(field)
  return read.read_config(source.path / str(place) / below) if place else None


def _vgg16(source: Source, options: Options) -> Reading:
  vgg = dims.vgg_from_shapes(source.tensors.shapes)
  return Reading(
      [Part("lpips", presets.to_json(vgg), tables_losses.vgg_rules(
          vgg, "features.", "lpips/vgg/", sliced=False))],
      [(r"classifier\.", "classifier: LPIPS uses the features only")])


def _lpips_heads(source: Source, options: Options) -> Reading:
  numbers = range(dims.count(source.tensors.shapes, r"lin(\d+)\.model\.1\.weight$"))
  channels = [source.tensors.shapes[f"lin{i}.model.1.weight"][1] for i in numbers]
  heads = tables_losses.lpips_heads(presets.VggDims(channels=tuple(channels)), "", "lpips/")
  return Reading([Part("lpips", {}, heads)])  # dimensions come with VGG16


def _convnext(source: Source, options: Options) -> Reading:
  convnext = dims.convnext_from_shapes(source.tensors.shapes)
  return Reading([Part("convnext", presets.to_json(convnext),
                       tables_losses.convnext_rules(convnext, "", "convnext/"))])


KINDS = (
    Kind("InternVL3, original layout (config.json: internvl_chat)",
         _says("model_type", "internvl_chat"), _internvl_original),
    Kind("InternVL3, transformers layout (config.json: internvl)",
         _says("model_type", "internvl"), _internvl_transformers),
    Kind("DC-AE of diffusers (config.json: AutoencoderDC)",
         _says("_class_name", "AutoencoderDC"), _autoencoder_dc),
    Kind("SANA of diffusers (config.json: SanaTransformer2DModel)",
         _says("_class_name", "SanaTransformer2DModel"), _sana),
    Kind("UniLIP folder (config.json: unilip_internvl)",
         _says("model_type", UNILIP), _unilip_folder),
    Kind("UniLIP's own parts (config.json: unilip_parts)",
         _says("model_type", UNILIP_PARTS), _unilip_own),
    Kind("UniLIP tokenizer (.pth with encoder., mlp1., down_blocks., down_mlp., decoder.)",
         _has("encoder.embeddings.class_embedding", "down_mlp.1.weight", "decoder.conv_in.weight"),
         _unilip_pth),
    Kind("torchvision vgg16", _has("features.0.weight", "features.28.weight"), _vgg16),
    Kind("LPIPS heads for VGG16 (lin0 … lin4)", _has("lin0.model.1.weight"), _lpips_heads),
    Kind("torchvision convnext_small", _has("features.0.0.weight", "features.1.0.layer_scale"),
         _convnext),
)
