"""What the importable modules look like: dimensions, shapes of their parameters, published counts.

Shapes come from the networks themselves (jax.eval_shape of init), so that an import is checked
against what training will build.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.common import tree
from unilip_jax.models import connector as connector_lib
from unilip_jax.models import dcae, latent_head, layers, perceptual, presets, projector, qwen2, sana
from unilip_jax.models import discriminator as discriminator_lib
from unilip_jax.models.vision import internvit
from unilip_jax.weights import dims as dims_lib


@dataclasses.dataclass(frozen=True)
class Mlp1Dims:
  in_width: int
  width: int


@dataclasses.dataclass(frozen=True)
class LatentHeadDims:
  depth: int
  width: int
  channels: int


@dataclasses.dataclass(frozen=True)
class QueriesDims:
  count: int
  width: int


@dataclasses.dataclass(frozen=True)
class ProjectorDims:
  in_width: int
  width: int


@dataclasses.dataclass(frozen=True)
class _ConnectorOf:
  """The connector's layers are of the LLM's sizes."""

  llm: presets.LlmDims
  depth: int


def _vision_tower(d: presets.VitDims):
  return internvit.InternVit(d, jnp.float32, "none"), [(1, d.image_size, d.image_size, 3)]


def _mlp1(d: Mlp1Dims):
  return projector.Mlp1(d.width, jnp.float32), [(1, 4, d.in_width)]


def _latent_head(d: LatentHeadDims):
  return latent_head.LatentHead(d.depth, d.channels, 0.02, jnp.float32), [(1, 4, d.width)]


def _decoder(d: presets.DcaeDims):
  return dcae.Decoder(d, jnp.float32, "none"), [(1, 1, 1, d.latent_channels)]


def _encoder(d: presets.DcaeDims):
  side = 2 ** len(d.channels)
  return dcae.Encoder(d, jnp.float32), [(1, side, side, 3)]


def _llm(d: presets.LlmDims):
  return qwen2.Qwen2(d, jnp.float32), [jax.ShapeDtypeStruct((1, 1), jnp.int32)]


def _queries(d: QueriesDims):
  return connector_lib.Queries(d.count, d.width), []


def _connector(d: _ConnectorOf):
  stack = qwen2.Stack(d.llm, d.depth, jnp.float32, causal=False)
  return stack, [(1, 1, d.llm.width), jax.ShapeDtypeStruct((1, 1), jnp.bool_)]


def _projector(d: ProjectorDims):
  return layers.Dense(d.width, jnp.float32), [(1, d.in_width)]


def _dit(d: presets.DitDims):
  return sana.Sana(d, jnp.float32), [
      (1, 1, 1, d.channels), (1,), (1, 1, d.caption_width), jax.ShapeDtypeStruct((1, 1), jnp.bool_)]


def _discriminator(d: presets.DiscriminatorDims):
  return discriminator_lib.Discriminator(d, jnp.float32), [(1, 128, 128, 3)]


def _lpips(d: presets.VggDims):
  return perceptual.Lpips(d, jnp.float32), [(1, 64, 64, 3)] * 2


def _convnext(d: presets.ConvNextDims):
  return perceptual.ConvNext(d, jnp.float32), [(1, 224, 224, 3)]


# name -> (class of its dimensions, dimensions -> (network, shapes of its inputs, float32 unless said))
_MODULES: Mapping[str, tuple[type, Callable[[Any], tuple[Any, list[Any]]]]] = {
    "vision_tower": (presets.VitDims, _vision_tower),
    "mlp1": (Mlp1Dims, _mlp1),
    "latent_head": (LatentHeadDims, _latent_head),
    "decoder": (presets.DcaeDims, _decoder),
    "encoder": (presets.DcaeDims, _encoder),
    "llm": (presets.LlmDims, _llm),
    "queries": (QueriesDims, _queries),
    "connector": (presets.ConnectorDims, _connector),
    "projector": (ProjectorDims, _projector),
    "dit": (presets.DitDims, _dit),
    "discriminator": (presets.DiscriminatorDims, _discriminator),
    "lpips": (presets.VggDims, _lpips),
    "convnext": (presets.ConvNextDims, _convnext),
}

# UniLIP, arXiv 2507.23278, and the networks it builds on; the LLM without its head, at UniLIP's 151 677
# rows (InternVL3 itself has 151 674).
_SAME = {"vision_tower": 304_012_288, "decoder": 159_223_171, "encoder": 153_027_104,
         "lpips": 14_716_160, "convnext": 50_223_688}
_PUBLISHED = {
    "1b": _SAME | {"mlp1": 4_482_816, "latent_head": 4_859_200, "llm": 493_800_704,
                   "connector": 89_475_200, "queries": 229_376, "projector": 2_066_688,
                   "dit": 591_747_872},
    "3b": _SAME | {"mlp1": 8_662_016, "latent_head": 14_227_520, "llm": 1_543_316_480,
                   "connector": 280_788_480, "queries": 393_216, "projector": 3_541_248,
                   "dit": 1_604_462_752},
}
_RELEASED_VOCABULARY, _PRESET_VOCABULARY = 151_674, 151_677


def parse_dims(module: str, dims: Mapping[str, Any]) -> Any:
  """The dimensions of `module` from model.json.

  Raises:
    ValueError: for an unknown module or unknown, missing fields.
  """
  if module not in _MODULES:
    raise ValueError(f"unknown module {module!r}; known: {', '.join(_MODULES)}")
  try:
    return presets.from_json(_MODULES[module][0], dict(dims))
  except TypeError as error:
    raise ValueError(f"{module}: a dimension is of the wrong kind: {error}") from error


def validate(module: str, dims: Mapping[str, Any]) -> None:
  """Refuses dimensions that no network has, before one is built of them.

  Raises:
    ValueError: naming the module, the field and the value.
  """
  parsed = parse_dims(module, dims)
  for field in dataclasses.fields(parsed):
    for value in _leaves(getattr(parsed, field.name)):
      if not _plausible(field, value):
        raise ValueError(f"{module}: {field.name}={value!r} is no plausible dimension")
  for whole, part in _DIVIDE:
    if hasattr(parsed, whole) and hasattr(parsed, part) and (
        getattr(parsed, whole) % getattr(parsed, part)):
      raise ValueError(f"{module}: {part}={getattr(parsed, part)} does not divide "
                       f"{whole}={getattr(parsed, whole)}")


_COUNTS = ("depth", "layers", "depths", "convs")  # of layers; those of a stage may be none
_DIVIDE = (("width", "heads"), ("heads", "kv_heads"), ("image_size", "patch"))


def _leaves(value: Any) -> list[Any]:
  return [x for v in value for x in _leaves(v)] if isinstance(value, tuple) else [value]


def _plausible(field: dataclasses.Field, value: Any) -> bool:
  kind = field.type if isinstance(field.type, type) else None
  if isinstance(value, bool) or kind is bool:
    return isinstance(value, bool) and kind is bool
  if isinstance(value, str) or kind is str:
    return isinstance(value, str) and kind in (str, None)
  if kind is float:
    return isinstance(value, int | float) and math.isfinite(value)
  most = 1000 if field.name in _COUNTS else 2**24
  return isinstance(value, int) and (0 if field.name in _COUNTS else 1) <= value <= most


def shapes(
    module: str, dims: Mapping[str, Any], llm: Mapping[str, Any] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """{path below the module: shape} of its parameters.

  Args:
    module: its name.
    dims: its dimensions.
    llm: the language model's, which the connector's layers share.

  Raises:
    ValueError: for dimensions that do not fit the module, or a connector without its `llm`.
  """
  parsed = parse_dims(module, dims)
  if module == "connector":
    if llm is None:
      raise ValueError("the connector's layers are of the language model's sizes, and none is here; "
                       "give the language model too (--mllm)")
    parsed = _ConnectorOf(parse_dims("llm", llm), parsed.depth)
  return dict(_shapes(module, parsed))


@functools.lru_cache(maxsize=64)  # an import asks several times, and tracing takes a second
def _shapes(module: str, parsed: Any) -> dict[str, jax.ShapeDtypeStruct]:
  network, inputs = _MODULES[module][1](parsed)
  arrays = [shape if isinstance(shape, jax.ShapeDtypeStruct)
            else jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
  method = {"method": "everything"} if module == "llm" else {}
  variables = jax.eval_shape(
      functools.partial(network.init, **method), jax.random.key(0), *arrays)
  return tree.flatten(variables["params"])


def count(module: str, dims: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> int:
  """Parameters of a module, without the free rows of a padded vocabulary.

  Args:
    module: its name.
    dims: its dimensions.
    shapes: {path below the module: shape}.
  """
  free = 0
  if module == "llm" and dims:
    d = parse_dims(module, dims)
    free = (d.rows - d.vocab) * d.width * (1 if d.tied else 2)
  return sum(math.prod(shape) for shape in shapes.values()) - free


def published_count(
    module: str, dims: Mapping[str, Any], llm: Mapping[str, Any] | None = None
) -> tuple[str, int] | None:
  """(size, parameters) that were published for these dimensions; None if they are others.

  Args:
    module: its name.
    dims: its dimensions.
    llm: the language model's, which tell the connector's size.
  """
  for size, counts in _PUBLISHED.items():
    wanted = _preset_dims(size).get(module)
    if module not in counts or wanted is None:
      continue
    if module == "connector" and (llm is None or llm["width"] != presets.get(size).llm.width):
      continue
    rows = wanted.get("vocab")
    if module == "llm" and dims["vocab"] == _RELEASED_VOCABULARY:
      rows, wanted = _RELEASED_VOCABULARY, wanted | {"vocab": _RELEASED_VOCABULARY}
    if _same(wanted, dims):
      if module != "llm":
        return size, counts[module]
      head = rows * wanted["width"]
      return size, counts[module] + head - (_PRESET_VOCABULARY - rows) * wanted["width"]
  return None


def _preset_dims(size: str) -> dict[str, Any]:
  preset = presets.get(size)
  width = preset.llm.width
  return dims_lib.split_tokenizer(preset.tokenizer) | {
      "encoder": presets.to_json(preset.dcae_encoder), "lpips": presets.to_json(preset.vgg),
      "convnext": presets.to_json(preset.convnext), "llm": presets.to_json(preset.llm),
      "connector": presets.to_json(preset.connector), "dit": presets.to_json(preset.dit),
      "queries": {"count": preset.connector.queries, "width": width},
      "projector": {"in_width": width, "width": preset.dit.caption_width}}


# How weights started, and what they do: neither changes their number.
_TRACELESS = ("layer_scale_init", "init_std", "positions")


def _same(wanted: Mapping[str, Any] | None, dims: Mapping[str, Any]) -> bool:
  """Equal but for how the weights started, which leaves no trace in them."""
  def clean(d):
    return {k: _lists(v) for k, v in d.items() if k not in _TRACELESS}

  return wanted is not None and clean(wanted) == clean(dims)


def _lists(value: Any) -> Any:
  return [_lists(v) for v in value] if isinstance(value, list | tuple) else value
