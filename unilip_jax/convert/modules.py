"""What the importable modules look like: dimensions, shapes of their parameters, published counts.

Shapes come from the networks themselves (jax.eval_shape of init), so that an import is checked
against what training will build.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax import presets, tree, weights
from unilip_jax.models import dcae, internvit, latent_head, perceptual, projector
from unilip_jax.models import discriminator as discriminator_lib

TOKENIZER = ("vision_tower", "mlp1", "latent_head", "decoder")


@dataclasses.dataclass(frozen=True)
class Mlp1Dims:
  in_width: int
  width: int


@dataclasses.dataclass(frozen=True)
class LatentHeadDims:
  depth: int
  width: int
  channels: int


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


def _discriminator(d: presets.DiscriminatorDims):
  return discriminator_lib.Discriminator(d, jnp.float32), [(1, 128, 128, 3)]


def _lpips(d: presets.VggDims):
  return perceptual.Lpips(d, jnp.float32), [(1, 64, 64, 3)] * 2


def _convnext(d: presets.ConvNextDims):
  return perceptual.ConvNext(d, jnp.float32), [(1, 224, 224, 3)]


# name -> (class of its dimensions, dimensions -> (network, shapes of its inputs))
_MODULES: Mapping[str, tuple[type, Callable[[Any], tuple[Any, list[tuple[int, ...]]]]]] = {
    "vision_tower": (presets.VitDims, _vision_tower),
    "mlp1": (Mlp1Dims, _mlp1),
    "latent_head": (LatentHeadDims, _latent_head),
    "decoder": (presets.DcaeDims, _decoder),
    "encoder": (presets.DcaeDims, _encoder),
    "discriminator": (presets.DiscriminatorDims, _discriminator),
    "lpips": (presets.VggDims, _lpips),
    "convnext": (presets.ConvNextDims, _convnext),
}

# UniLIP, arXiv 2507.23278, and the networks it builds on.
_PUBLISHED = {
    "1b": {"vision_tower": 304_012_288, "mlp1": 4_482_816, "latent_head": 4_859_200,
           "decoder": 159_223_171, "encoder": 153_027_104, "lpips": 14_716_160,
           "convnext": 50_223_688},
    "3b": {"vision_tower": 304_012_288, "mlp1": 8_662_016, "latent_head": 14_227_520,
           "decoder": 159_223_171, "encoder": 153_027_104, "lpips": 14_716_160,
           "convnext": 50_223_688},
}


def parse_dims(module: str, dims: Mapping[str, Any]) -> Any:
  """The dimensions of `module` from model.json.

  Raises:
    ValueError: for an unknown module or unknown, missing fields.
  """
  if module not in _MODULES:
    raise ValueError(f"unknown module {module!r}; known: {', '.join(_MODULES)}")
  return presets.from_json(_MODULES[module][0], dict(dims))


def shapes(module: str, dims: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """{path below the module: shape} of its parameters."""
  network, inputs = _MODULES[module][1](parse_dims(module, dims))
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
  variables = jax.eval_shape(network.init, jax.random.key(0), *arrays)
  return tree.flatten(variables["params"])


def published_count(module: str, dims: Mapping[str, Any]) -> tuple[str, int] | None:
  """(size, parameters) that were published for these dimensions; None if they are others."""
  for size, counts in _PUBLISHED.items():
    if module in counts and _same(_preset_dims(size).get(module), dims):
      return size, counts[module]
  return None


def _preset_dims(size: str) -> dict[str, Any]:
  preset = presets.get(size)
  return weights.split_tokenizer(preset.tokenizer) | {
      "encoder": presets.to_json(preset.dcae_encoder), "lpips": presets.to_json(preset.vgg),
      "convnext": presets.to_json(preset.convnext)}


def _same(wanted: Mapping[str, Any] | None, dims: Mapping[str, Any]) -> bool:
  """Equal but for how the weights started, which leaves no trace in them."""
  def clean(d):
    return {k: _lists(v) for k, v in d.items() if k != "layer_scale_init"}

  return wanted is not None and clean(wanted) == clean(dims)


def _lists(value: Any) -> Any:
  return [_lists(v) for v in value] if isinstance(value, list | tuple) else value
