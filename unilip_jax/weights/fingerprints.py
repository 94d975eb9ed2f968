"""Identifies weights on the devices by sums over their bits."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.common import tree


def fingerprint(params: Any) -> str:
  """Returns hex digits that change with every weight; equal on every mesh."""
  return hashlib.sha256(json.dumps(checksums(params), sort_keys=True).encode()).hexdigest()[:16]


def checksums(params: Any) -> dict[str, list[int]]:
  """Computes {path: two sums} over the bits of each array's values in float32 and their positions."""
  sums = jax.jit(lambda arrays: jax.tree.map(_checksum, arrays))(params)
  return {path: [int(v) for v in np.asarray(value)]
          for path, value in tree.flatten(jax.device_get(sums)).items()}


def _checksum(x: jax.Array) -> jax.Array:
  """Sums an array's bits and their positions to uint32[2]; integer sums are equal on every mesh."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).reshape(-1)
  position = jnp.arange(bits.size, dtype=jnp.uint32)
  mixed = (bits ^ (position * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
  return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32),
                    jnp.sum(mixed ^ (mixed >> jnp.uint32(15)), dtype=jnp.uint32)])
