"""Softmax attention: the one place that picks a kernel.

NVIDIA GPUs of Ampere or later, half precision: cuDNN's fused attention, which takes padding as lengths and
skips it. TPUs whose on-chip memory can hold scores: XLA's, a few examples at a time. Elsewhere XLA's.
Scores and softmax are float32 in all of them.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from unilip_jax.ops import attention_parts, backend

_FUSED_DTYPES = (jnp.bfloat16, jnp.float16)
_FUSED_HEAD_DIM = 128  # cuDNN's largest on every architecture; Hopper alone takes 256


_forward_mode: contextvars.ContextVar[bool] = contextvars.ContextVar("forward_mode", default=False)


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
  """Traces attention inside the context so that `jax.jvp` applies; cuDNN's has reverse mode alone."""
  token = _forward_mode.set(True)
  try:
    yield
  finally:
    _forward_mode.reset(token)


def by_length() -> bool:
  """Returns whether keys must be in an order that has pads last, so that padding is a length: on GPUs.

  A full mask is a bias [B, 1, Q, S] to cuDNN, which every layer reads and whose gradient it computes.
  """
  return backend.name() == "gpu"


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None = None,
    causal: bool = False, pads_last: bool = False
) -> jax.Array:
  """Computes softmax(q kᵀ / √H) v.

  Args:
    q: float[B, Q, N, H].
    k: float[B, S, K, H], N a multiple of K (grouped-query attention).
    v: float[B, S, K, H].
    mask: bool, broadcastable to [B, N, Q, S]; True where a query may attend.
    causal: query i attends to keys up to i only.
    pads_last: the mask is bool[B, 1, 1, S], and after an example's first False all are False.

  Returns:
    float[B, Q, N, H] in q's dtype.
  """
  chex.assert_rank([q, k, v], 4)
  chex.assert_equal_shape([k, v])
  if pads_last:
    chex.assert_shape(mask, (k.shape[0], 1, 1, k.shape[1]))
  attend = functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation="xla")
  lengths = (q.shape[1], k.shape[1])
  fused = not _forward_mode.get() and fits_cudnn(
      q.dtype, q.shape[-1], lengths, mask is not None and not pads_last)
  if backend.planned() and backend.name() == "gpu" and backend.device_kind() and fused:
    # cuDNN cannot be traced without a GPU. Rematerialised, XLA's saves for the backward pass what cuDNN's
    # saves: q, k and v.
    return jax.checkpoint(lambda q, k, v: attend(q, k, v, mask=mask))(q, k, v)
  if not backend.planned() and _device_fuses() and fused:
    if pads_last:
      return _padded_by_length(q, k, v, mask, causal)
    if mask is not None:
      mask = jnp.broadcast_to(mask, (*mask.shape[:2], *lengths))  # cuDNN needs full [Q, S] planes
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")
  examples = attention_parts.examples_per_part(
      q.shape[0], 4 * q.shape[2] * math.prod(lengths), q.shape[-1])
  if examples:
    return attention_parts.in_parts(attend, q, k, v, mask, examples)
  return attend(q, k, v, mask=mask)


def _padded_by_length(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, causal: bool) -> jax.Array:
  """Computes `attention` by cuDNN with lengths instead of a mask whose pads are last.

  On several devices each calls it with its own examples: JAX's partitioning would hand every device the
  lengths of all queries.
  """
  def local(q, k, v, mask):
    lengths = jnp.maximum(mask.sum((1, 2, 3), dtype=jnp.int32), 1)  # of pads alone: attends to the first
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn")

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or q.shape[0] % mesh.size:
    return local(q, k, v, mask)
  examples = P(mesh.axis_names)
  return jax.shard_map(local, mesh=mesh, in_specs=examples, out_specs=examples)(q, k, v, mask)


def fits_cudnn(dtype: Any, head_dim: int, lengths: tuple[int, int], masked: bool) -> bool:
  """Returns whether cuDNN's kernel and its gradient support these shapes.

  Args:
    dtype: of q, k and v.
    head_dim: H.
    lengths: (Q, S); with a mask, the gradient needs both even. With a mask and half a tile of keys left
      over, it is NaN on Hopper where all scores of a query are low, as Qwen2's can be (cuDNN 9.20,
      github.com/pytorch/pytorch/issues/196678).
    masked: whether there is a mask that is no length.
  """
  return (dtype in _FUSED_DTYPES and head_dim % 8 == 0 and head_dim <= _FUSED_HEAD_DIM
          and not (masked and (any(length % 2 for length in lengths) or lengths[1] % 128 == 64)))


@functools.cache
def _device_fuses() -> bool:
  """Returns whether the default device is an NVIDIA GPU that cuDNN's attention runs on."""
  if jax.default_backend() != "gpu":
    return False
  major = str(jax.devices()[0].compute_capability).split(".")[0]  # "gfx942" on AMD
  return major.isdigit() and int(major) >= 8
