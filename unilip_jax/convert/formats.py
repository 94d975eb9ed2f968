"""The formats of weights that load: a table, each row with its predicate and its reader.

A new format is one row of FORMATS and one function that returns modules, dimensions and rules. A format is
recognised by config.json, or by names of tensors if there is none.
"""

from collections.abc import Callable
import dataclasses

from unilip_jax.convert import (
  dcae,
  inception,
  internvit,
  io,
  modules,
  perceptual,
  reading,
  sana,
  unilip,
)


@dataclasses.dataclass(frozen=True)
class Format:
  """A recognisable format of weights.

  Attributes:
    name: for messages.
    matches: whether a source has this format.
    read: (source, options) -> Reading.
  """

  name: str
  matches: Callable[[io.Source], bool]
  read: Callable[[io.Source, reading.Options], reading.Reading]


def read_source(source: io.Source, options: reading.Options) -> tuple[Format, reading.Reading]:
  """Returns a source's format and how it is read.

  Raises:
    io.ReadError: if its format is unknown or ambiguous, or its dimensions cannot be derived.
  """
  row = _format_of(source)
  try:
    result = row.read(source, options)
    for part in result.parts:
      if part.dims:
        modules.validate(part.module, part.dims)
    return row, result
  except KeyError as error:
    reason = f"config.json or tensors lack {error}"
  except (TypeError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
    reason = f"an entry of config.json, or a tensor's shape, is of the wrong type: {error}"
  except ValueError as error:
    reason = str(error)
  raise io.ReadError(f"{source.path}: {row.name}: {reason}")


def notes(source: io.Source, result: reading.Reading) -> list[str]:
  """Returns the lines about a source that users need: assumptions, and files that are not read."""
  unread = ", ".join(source.unread)
  return [*result.notes, *([f"not read: {unread}; give a file alone to choose it"] if unread else [])]


def _format_of(source: io.Source) -> Format:
  rows = [row for row in FORMATS if row.matches(source)]
  if len(rows) == 1:
    return rows[0]
  if rows:
    raise io.ReadError(f"{source.path} could be {' or '.join(row.name for row in rows)}")
  names = ", ".join(list(source.tensors)[:4])
  kind = source.config.get("model_type") or source.config.get("_class_name")
  raise io.ReadError(
      f"{source.path} is of no known format (config.json: {kind!r}; tensors {names}, …). "
      f"Known: {'; '.join(row.name for row in FORMATS)}")


def _has(*names: str) -> Callable[[io.Source], bool]:
  return lambda source: all(name in source.tensors for name in names)


def _config(field: str, value: str) -> Callable[[io.Source], bool]:
  return lambda source: source.config.get(field) == value


FORMATS = (
    Format("InternVL3, original layout (config.json: internvl_chat)",
           _config("model_type", "internvl_chat"), internvit.read_original),
    Format("InternVL3, transformers layout (config.json: internvl)",
           _config("model_type", "internvl"), internvit.read_transformers),
    Format("DC-AE of diffusers (config.json: AutoencoderDC)",
           _config("_class_name", "AutoencoderDC"), dcae.read),
    Format("SANA of diffusers (config.json: SanaTransformer2DModel)",
           _config("_class_name", "SanaTransformer2DModel"), sana.read),
    Format("UniLIP folder (config.json: unilip_internvl)",
           _config("model_type", unilip.FOLDER_TYPE), unilip.read_folder),
    Format("UniLIP's own modules (config.json: unilip_parts)",
           _config("model_type", unilip.PARTS_TYPE), unilip.read_parts),
    Format("UniLIP tokenizer (.pth with encoder., mlp1., down_blocks., down_mlp., decoder.)",
           _has("encoder.embeddings.class_embedding", "down_mlp.1.weight", "decoder.conv_in.weight"),
           unilip.read_pth),
    Format("torchvision vgg16", _has("features.0.weight", "features.28.weight"), perceptual.read_vgg),
    Format("torchvision alexnet", _has("features.0.weight", "features.3.weight", "features.6.weight"),
           perceptual.read_alexnet),
    Format("torchvision squeezenet1_1", _has("features.3.squeeze.weight"), perceptual.read_squeezenet),
    Format("LPIPS heads (lin0 … lin4, squeeze: lin6)", _has("lin0.model.1.weight"),
           perceptual.read_lpips_heads),
    Format("torchvision convnext_small", _has("features.0.0.weight", "features.1.0.layer_scale"),
           perceptual.read_convnext),
    Format("Inception-v3 of FID (pt_inception-2015-12-05)",
           _has("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"),
           inception.read),
)
