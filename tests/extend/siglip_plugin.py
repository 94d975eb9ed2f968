"""What the SigLIP example adds by name: a tower and a size that uses it."""

import dataclasses

from tests.extend import siglip
from unilip_jax.common import registry
from unilip_jax.models import presets


def register() -> None:
  """Adds the rows; the package calls it through the entry-point group `unilip_jax.plugins`."""
  registry.register("vision_tower", "siglip", "tests.extend.siglip:Siglip")
  registry.register("size", "tiny_siglip", "tests.extend.siglip_plugin:tiny_siglip")


def tiny_siglip() -> presets.Preset:
  """The size `tiny` with SigLIP as its vision tower; `--config.size=tiny_siglip` chooses it."""
  tiny = presets.get("tiny")
  vit = siglip.SiglipDims(depth=4, width=128, heads=4, mlp=512, patch=16, image_size=128)
  return dataclasses.replace(tiny, tokenizer=dataclasses.replace(tiny.tokenizer, vit=vit))
