"""LPIPS as metrics: one for each trunk whose weights a folder holds."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.models import perceptual, presets
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import stored as stored_lib

MODULES = {"lpips": presets.VggDims, "lpips_alex": presets.AlexNetDims,
           "lpips_squeeze": presets.SqueezeNetDims}


def network(module: str, stored: stored_lib.Stored) -> perceptual.Lpips:
  """Returns the float32 network of a module of MODULES, with the dimensions that are stored with it."""
  dims = presets.from_json(MODULES[module], dims_lib.module_dims(stored.model)[module])
  return perceptual.Lpips(dims, jnp.float32)


def shapes(networks: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {module: shapes of its parameters}."""
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return {name: jax.eval_shape(one.init, jax.random.key(0), image, image)["params"]
          for name, one in networks.items()}
