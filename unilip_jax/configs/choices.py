"""Fields whose values are names out of a few; another one is refused with the choices."""

from typing import Any

from unilip_jax.configs import base

_REMAT = ("none", "dots", "full")
CHOICES = {
    "autoencoder": ("unilip", "dcae"),
    "dtype": ("bfloat16", "float16", "float32"),
    "remat.vit": _REMAT, "remat.decoder": _REMAT, "remat.llm": _REMAT, "remat.dit": _REMAT,
    "loss.reduction": ("token", "sample", "square"),
    "generate.condition": ("both", "queries", "hidden"),
    "generate.target": ("unilip", "dcae"),
    "data.crop": ("random", "center", "stretch"),
    "mesh.frozen_sharding": ("fsdp", "replicated"),
    "sample.solver": ("dpm", "euler"),
}


def check(config: Any) -> None:
  """Raises ValueError for a value that is none of its field's choices."""
  for name, choices in CHOICES.items():
    value = base.field(config, name)
    if value not in choices:
      raise ValueError(f"--config.{name}={value}: choose {', '.join(choices)}")
