"""The modules that can be imported: their dimensions, networks and parameter shapes.

Shapes come from the networks themselves (jax.eval_shape of init), so that an import is checked against
what training will build.
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
from unilip_jax.models import (
  dcae,
  inception,
  latent_head,
  layers,
  perceptual,
  presets,
  projector,
  qwen2,
  sana,
)
from unilip_jax.models import discriminator as discriminator_lib
from unilip_jax.models.vision import internvit


@dataclasses.dataclass(frozen=True)
class WidthDims:
  """Of mlp1 and the projector."""

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
class _ConnectorStack:
  """The connector's layers have the language model's sizes."""

  llm: presets.LlmDims
  depth: int


_TOKENS = jax.ShapeDtypeStruct((1, 1), jnp.int32)
_MASK = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
_F32 = jnp.float32

# name -> (class of its dimensions, dimensions -> (network, its inputs: shapes of float32, or structs))
_MODULES: Mapping[str, tuple[type, Callable[[Any], tuple[Any, list[Any]]]]] = {
    "vision_tower": (presets.VitDims, lambda d: (
        internvit.InternVit(d, _F32, "none"), [(1, d.image_size, d.image_size, 3)])),
    "mlp1": (WidthDims, lambda d: (projector.Mlp1(d.width, _F32), [(1, 4, d.in_width)])),
    "latent_head": (LatentHeadDims, lambda d: (
        latent_head.LatentHead(d.depth, d.channels, 0.02, _F32), [(1, 4, d.width)])),
    "decoder": (presets.DcaeDims, lambda d: (
        dcae.Decoder(d, _F32, "none"), [(1, 1, 1, d.latent_channels)])),
    "encoder": (presets.DcaeDims, lambda d: (
        dcae.Encoder(d, _F32), [(1, *(2 ** len(d.channels),) * 2, 3)])),
    "llm": (presets.LlmDims, lambda d: (qwen2.Qwen2(d, _F32), [_TOKENS])),
    "queries": (QueriesDims, lambda d: (connector_lib.Queries(d.count, d.width), [])),
    "connector": (presets.ConnectorDims, lambda d: (
        qwen2.Stack(d.llm, d.depth, _F32, causal=False), [(1, 1, d.llm.width), _MASK])),
    "projector": (WidthDims, lambda d: (layers.Dense(d.width, _F32), [(1, d.in_width)])),
    "dit": (presets.DitDims, lambda d: (
        sana.Sana(d, _F32), [(1, 1, 1, d.channels), (1,), (1, 1, d.caption_width), _MASK])),
    "discriminator": (presets.DiscriminatorDims, lambda d: (
        discriminator_lib.Discriminator(d, _F32), [(1, 128, 128, 3)])),
    **{name: (dims, lambda d: (perceptual.Lpips(d, _F32), [(1, 64, 64, 3)] * 2)) for name, dims in (
        ("lpips", presets.VggDims), ("lpips_alex", presets.AlexNetDims),
        ("lpips_squeeze", presets.SqueezeNetDims))},
    "convnext": (presets.ConvNextDims, lambda d: (perceptual.ConvNext(d, _F32), [(1, 224, 224, 3)])),
    "inception": (inception.InceptionDims, lambda d: (
        inception.Inception(d), [(1, inception.SIDE, inception.SIDE, 3)])),
}


def parse_dims(module: str, dims: Mapping[str, Any]) -> Any:
  """Returns the dimensions of `module` from model.json as their dataclass.

  Raises:
    ValueError: for an unknown module or unknown, missing fields.
  """
  if module not in _MODULES:
    raise ValueError(f"unknown module {module!r}; known: {', '.join(_MODULES)}")
  try:
    return presets.from_json(_MODULES[module][0], dict(dims))
  except TypeError as error:
    raise ValueError(f"{module}: a dimension is of the wrong type: {error}") from error


_COUNTS = ("depth", "layers", "depths", "convs")  # numbers of layers; a stage may have none
_DIVISORS = (("width", "heads"), ("heads", "kv_heads"), ("image_size", "patch"))


def validate(module: str, dims: Mapping[str, Any]) -> None:
  """Refuses implausible dimensions before a network is built from them.

  Raises:
    ValueError: naming the module, the field and the value.
  """
  parsed = parse_dims(module, dims)
  values = {}
  for field in dataclasses.fields(parsed):
    values[field.name] = getattr(parsed, field.name)
    for value in jax.tree.leaves(values[field.name], is_leaf=lambda x: x is None):
      if not _plausible(field, value):
        raise ValueError(f"{module}: {field.name}={value!r} is not a plausible dimension")
  for name, divisor in _DIVISORS:
    if {name, divisor} <= values.keys() and values[name] % values[divisor]:
      raise ValueError(f"{module}: {divisor}={values[divisor]} does not divide {name}={values[name]}")


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
  """Returns {path below the module: shape} of its parameters.

  Args:
    module: its name.
    dims: its dimensions, JSON-ready.
    llm: the language model's, which the connector's layers have too.

  Raises:
    ValueError: for dimensions that do not fit the module, or a connector without `llm`.
  """
  parsed = parse_dims(module, dims)
  if module == "connector":
    if llm is None:
      raise ValueError("the connector's layers have the language model's sizes, and it is missing; "
                       "give the language model too (--mllm)")
    parsed = _ConnectorStack(parse_dims("llm", llm), parsed.depth)
  return dict(_shapes(module, parsed))


@functools.lru_cache(maxsize=64)  # an import needs them several times, and tracing takes a second
def _shapes(module: str, parsed: Any) -> dict[str, jax.ShapeDtypeStruct]:
  network, inputs = _MODULES[module][1](parsed)
  arrays = [jax.ShapeDtypeStruct(x, _F32) if isinstance(x, tuple) else x for x in inputs]
  method = {"method": "everything"} if module == "llm" else {}
  variables = jax.eval_shape(
      functools.partial(network.init, **method), jax.random.key(0), *arrays)
  return tree.flatten(variables["params"])


def count(module: str, dims: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> int:
  """Returns the number of parameters of a module, without the free rows of a padded vocabulary.

  Args:
    module: its name.
    dims: its dimensions, JSON-ready.
    shapes: {path below the module: shape}.
  """
  free = 0
  if module == "llm" and dims:
    d = parse_dims(module, dims)
    free = (d.rows - d.vocab) * d.width * (1 if d.tied else 2)
  return sum(math.prod(shape) for shape in shapes.values()) - free
