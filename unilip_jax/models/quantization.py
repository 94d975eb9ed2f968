"""Weights in int8 for inference: half of the memory of bfloat16, and of its traffic.

Only weights are int8; the model computes in its own dtype. w ≈ q · s with q int8 in ±127 and one float32
scale s for each output channel, symmetric. Quantized are the dense layers inside the stacks of LLM,
connector, DiT and vision tower, and the LLM's embedding and head. Convolutions, biases, norms and the small
dense layers at the ends of the networks are not. Scales are stored with the weights, as `<name>_scale`;
`layers.Dense` and `qwen2.Qwen2` read them.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.common import tree

SCALE = "_scale"
_MODULES = ("llm", "connector", "dit", "vision_tower")
_LARGEST = 127.0


def quantize(params: Mapping[str, Any]) -> dict[str, Any]:
  """Replaces floating-point weights by int8 weights and their scales.

  Args:
    params: by module; other arrays and weights that are int8 already stay as they are.
  """
  out: dict[str, Any] = {}
  for path, leaf in tree.flatten(params).items():
    axis = _input_axis(path, leaf)
    if axis is None or leaf.dtype == jnp.int8:
      out[path] = leaf
    else:
      out[path], out[path + SCALE] = _round(leaf, axis=axis)
  return tree.unflatten(out)


def _input_axis(path: str, leaf: Any) -> int | None:
  """Returns the axis of a weight that is summed over; None for arrays that stay in floating point."""
  if path == "llm/embedding":
    return -1  # [rows, width]: a row is an output channel of the tied head
  if path == "llm/head":
    return -2
  is_dense = path.endswith("/kernel") and tree.unstacked_rank(path, leaf) == 2
  return -2 if is_dense and tree.is_scanned(path) and path.split("/")[0] in _MODULES else None


def cast(params: Mapping[str, Any], dtype_of: Callable[[str], str]) -> dict[str, Any]:
  """Casts parameters, each to its dtype; with "int8", what `quantize` leaves alone becomes bfloat16.

  Args:
    params: by module, in floating point.
    dtype_of: returns the dtype of the leaf at a path.
  """
  to_int8, others = tree.split(params, lambda path: dtype_of(path) == "int8")
  given = tree.flatten(to_int8)
  small = tree.map_with_path(
      lambda path, x: x.astype(jnp.bfloat16) if path in given and x.dtype != jnp.int8 else x,
      quantize(to_int8))
  return tree.merge(small, tree.map_with_path(lambda path, x: x.astype(dtype_of(path)), others))


@functools.partial(jax.jit, static_argnames="axis")
def _round(weight: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array]:
  weight = weight.astype(jnp.float32)
  largest = jnp.abs(weight).max(axis, keepdims=True)
  scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
  return jnp.round(weight / scale).astype(jnp.int8), scale.squeeze(axis)
