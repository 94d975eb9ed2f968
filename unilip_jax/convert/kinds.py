"""The kinds of weights that load: a table, each row with its predicate and its reading.

A new kind is one row of KINDS and one function that names modules, dimensions and rules. The first
is recognised by config.json, or by names of tensors where there is none.
"""

from collections.abc import Callable
import dataclasses

from unilip_jax import presets, weights
from unilip_jax.convert import (
  dims,
  read,
  sources,
  tables_dcae,
  tables_internvit,
  tables_latent_head,
  tables_losses,
  tables_projector,
)
from unilip_jax.convert import rules as engine

Part, Reading, Source = sources.Part, sources.Reading, sources.Source
_NOT_LLM = "language model: the reconstruction stages do not use it"
_NOT_GENERATION = "generation part: the reconstruction stages do not use it"
COUNTER = (r".*\.num_batches_tracked$", "batch norm's step counter: no weight")


@dataclasses.dataclass(frozen=True)
class Kind:
  """A recognisable kind of weights.

  Attributes:
    name: for messages.
    matches: whether a source is of this kind.
    read: (source, heads of the ViT or None) -> Reading.
  """

  name: str
  matches: Callable[[Source], bool]
  read: Callable[[Source, int | None], Reading]


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


def read_source(source: Source, vit_heads: int | None) -> tuple[Kind, Reading]:
  """A source's kind and how it is to be read.

  Raises:
    read.ReadError: if its kind, dimensions or a tensor that tells them are not to be had.
  """
  kind = kind_of(source)
  try:
    return kind, kind.read(source, vit_heads)
  except KeyError as error:
    raise read.ReadError(
        f"{source.path}: {kind.name}: config.json or tensors lack {error}") from error
  except ValueError as error:
    raise read.ReadError(f"{source.path}: {kind.name}: {error}") from error


def _has(*names: str) -> Callable[[Source], bool]:
  return lambda source: all(name in source.tensors for name in names)


def _says(field: str, value: str) -> Callable[[Source], bool]:
  return lambda source: source.config.get(field) == value


def _internvl_original(source: Source, vit_heads: int | None) -> Reading:
  vit = dims.vit_from_config(source.config)
  mlp1 = dims.mlp1_from_shapes(source.tensors.shapes, "mlp1.1.weight")
  return Reading(
      [Part("vision_tower", presets.to_json(vit),
            tables_internvit.rules(vit, "vision_model.", "vision_tower/")),
       Part("mlp1", mlp1, tables_projector.rules("mlp1.", "mlp1/"))],
      [(r"language_model\.", _NOT_LLM)])


def _internvl_transformers(source: Source, vit_heads: int | None) -> Reading:
  """Old names start with `vision_tower.`, new ones with `model.vision_tower.`."""
  vit = dims.vit_from_config(source.config)
  prefix = "model." if any(n.startswith("model.vision_tower.") for n in source.tensors) else ""
  first = f"{prefix}multi_modal_projector.linear_1.weight"
  if first not in source.tensors:
    raise read.ReadError(f"{first} is absent; found {', '.join(list(source.tensors)[:4])}, …")
  return Reading(
      [Part("vision_tower", presets.to_json(vit), tables_internvit.rules_transformers(
          vit, f"{prefix}vision_tower.", "vision_tower/")),
       Part("mlp1", dims.mlp1_from_shapes(source.tensors.shapes, first),
            tables_projector.rules_transformers(f"{prefix}multi_modal_projector.", "mlp1/"))],
      [(r"(model\.)?language_model\.", _NOT_LLM), (r"lm_head\.", _NOT_LLM)])


def _autoencoder_dc(source: Source, vit_heads: int | None) -> Reading:
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


def _unilip_pth(source: Source, vit_heads: int | None) -> Reading:
  shapes = source.tensors.shapes
  vit = dims.vit_from_shapes(shapes, "encoder.", vit_heads)
  head = dims.latent_head_from_shapes(shapes, "")
  decoder = dims.decoder_from_shapes(shapes, "decoder.")
  tokenizer = presets.TokenizerDims(vit, head["width"], head["depth"], decoder)
  table = tokenizer_rules(tokenizer)
  return Reading(
      [Part(module, module_dims, [r for r in table if r.path.startswith(f"{module}/")])
       for module, module_dims in weights.split_tokenizer(tokenizer).items()],
      [COUNTER], [f"dimensions come from shapes: {vit.heads} ViT heads and DC-AE's activations "
                   f"({decoder.acts[0]}) are assumed"])


def _unilip_folder(source: Source, vit_heads: int | None) -> Reading:
  shapes, vae = source.tensors.shapes, "model.vae_decoder."
  vit = dims.vit_from_config(source.config)
  head = dims.latent_head_from_shapes(shapes, vae)
  vae_config = read.read_config(source.path / source.config.get("vae_path", ""))
  if vae_config is not None and vae_config.get("_class_name") == "AutoencoderDC":
    decoder = tables_dcae.dims_from_config(vae_config)[1]
    notes = [f"decoder's dimensions come from {source.config['vae_path']}/config.json"]
  else:
    decoder = dims.decoder_from_shapes(shapes, f"{vae}decoder.")
    notes = [f"decoder's dimensions come from shapes: activations ({decoder.acts[0]}) are assumed"]
  return Reading(
      [Part("vision_tower", presets.to_json(vit),
            tables_internvit.rules(vit, "model.vision_tower.", "vision_tower/")),
       Part("mlp1", dims.mlp1_from_shapes(shapes, "model.multi_modal_projector.1.weight"),
            tables_projector.rules("model.multi_modal_projector.", "mlp1/")),
       Part("latent_head", head, tables_latent_head.rules(head["depth"], vae, "latent_head/")),
       Part("decoder", presets.to_json(decoder),
            tables_dcae.decoder_rules(decoder, f"{vae}decoder.", "decoder/"))],
      [(r"model\.language_model\.|lm_head\.", _NOT_LLM),
       (r"model\.(latent_queries$|dit\.|llm_connector\.|projector\.)", _NOT_GENERATION), COUNTER],
      notes)


def _vgg16(source: Source, vit_heads: int | None) -> Reading:
  vgg = dims.vgg_from_shapes(source.tensors.shapes)
  return Reading(
      [Part("lpips", presets.to_json(vgg), tables_losses.vgg_rules(
          vgg, "features.", "lpips/vgg/", sliced=False))],
      [(r"classifier\.", "classifier: LPIPS uses the features only")])


def _lpips_heads(source: Source, vit_heads: int | None) -> Reading:
  numbers = range(dims.count(source.tensors.shapes, r"lin(\d+)\.model\.1\.weight$"))
  channels = [source.tensors.shapes[f"lin{i}.model.1.weight"][1] for i in numbers]
  heads = tables_losses.lpips_heads(presets.VggDims(channels=tuple(channels)), "", "lpips/")
  return Reading([Part("lpips", {}, heads)])  # dimensions come with VGG16


def _convnext(source: Source, vit_heads: int | None) -> Reading:
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
    Kind("UniLIP folder (config.json: unilip_internvl)",
         _says("model_type", "unilip_internvl"), _unilip_folder),
    Kind("UniLIP tokenizer (.pth with encoder., mlp1., down_blocks., down_mlp., decoder.)",
         _has("encoder.embeddings.class_embedding", "down_mlp.1.weight", "decoder.conv_in.weight"),
         _unilip_pth),
    Kind("torchvision vgg16", _has("features.0.weight", "features.28.weight"), _vgg16),
    Kind("LPIPS heads for VGG16 (lin0 … lin4)", _has("lin0.model.1.weight"), _lpips_heads),
    Kind("torchvision convnext_small", _has("features.0.0.weight", "features.1.0.layer_scale"),
         _convnext),
)
