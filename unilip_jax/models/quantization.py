"""Weights in int8 for inference: half of the memory of bfloat16, and of its traffic.

Weights alone: products stay in the dtype of the model. w ≈ q · s with q int8 in ±127 and one float32
scale s for each output channel, symmetric. Quantized are the products of the layers of LLM, connector, DiT
and CLIP tower and the LLM's embedding and head; convolutions, biases, norms and the small products at the
ends of the networks are not. `layers.Dense` and `qwen2.Qwen2` find the scales beside the weights, as
`<name>_scale`.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.common import tree

SCALE = "_scale"
_MODULES = ("llm", "connector", "dit", "vision_tower")
_LARGEST = 127.0


def quantized(params: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters with int8 weights and their scales in place of floating-point weights.

  Args:
    params: by module; what is not quantized stays as it is. Weights that are int8 already, too.
  """
  out: dict[str, Any] = {}
  for path, leaf in tree.flatten(params).items():
    axis = _input_axis(path, leaf)
    if axis is None or leaf.dtype == jnp.int8:
      out[path] = leaf
    else:
      out[path], out[path + SCALE] = _rounded(leaf, axis=axis)
  return tree.unflatten(out)


def _input_axis(path: str, leaf: Any) -> int | None:
  """The axis of a weight that a product sums over; None for what stays in floating point."""
  if path == "llm/embedding":
    return -1  # [rows, width]: a row is an output channel of the tied head
  if path == "llm/head":
    return -2
  is_product = path.endswith("/kernel") and tree.unstacked_rank(path, leaf) == 2
  return -2 if is_product and tree.is_scanned(path) and path.split("/")[0] in _MODULES else None


@functools.partial(jax.jit, static_argnames="axis")
def _rounded(weight: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array]:
  weight = weight.astype(jnp.float32)
  largest = jnp.abs(weight).max(axis, keepdims=True)
  scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
  return jnp.round(weight / scale).astype(jnp.int8), scale.squeeze(axis)
