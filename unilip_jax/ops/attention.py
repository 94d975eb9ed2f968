"""Softmax attention: the one place that picks a kernel.

NVIDIA GPUs of Ampere or later, half precision: cuDNN's fused attention. TPUs whose on-chip memory can hold
scores: XLA's, a few examples at a time. Elsewhere XLA's. Scores and softmax are float32 in all of them.
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


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None = None,
    causal: bool = False
) -> jax.Array:
  """Computes softmax(q kᵀ / √H) v.

  Args:
    q: float[B, Q, N, H].
    k: float[B, S, K, H], N a multiple of K (grouped-query attention).
    v: float[B, S, K, H].
    mask: bool, broadcastable to [B, N, Q, S]; True where a query may attend.
    causal: query i attends to keys up to i only.

  Returns:
    float[B, Q, N, H] in q's dtype.
  """
  chex.assert_rank([q, k, v], 4)
  chex.assert_equal_shape([k, v])
  attend = functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation="xla")
  lengths = (q.shape[1], k.shape[1])
  fused = not _forward_mode.get() and fits_cudnn(q.dtype, q.shape[-1], lengths, mask is not None)
  if backend.planned() and backend.name() == "gpu" and backend.device_kind() and fused:
    # cuDNN cannot be traced without a GPU. Rematerialised, XLA's saves for the backward pass what cuDNN's
    # saves: q, k and v.
    return jax.checkpoint(lambda q, k, v: attend(q, k, v, mask=mask))(q, k, v)
  if not backend.planned() and _device_fuses() and fused:
    if mask is not None:
      mask = jnp.broadcast_to(mask, (*mask.shape[:2], *lengths))  # cuDNN needs full [Q, S] planes
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")
  examples = attention_parts.examples_per_part(
      q.shape[0], 4 * q.shape[2] * math.prod(lengths), q.shape[-1])
  if examples:
    return attention_parts.in_parts(attend, q, k, v, mask, examples)
  return attend(q, k, v, mask=mask)


def fits_cudnn(dtype: Any, head_dim: int, lengths: tuple[int, int], masked: bool) -> bool:
  """Returns whether cuDNN's kernel and its gradient support these shapes.

  Args:
    dtype: of q, k and v.
    head_dim: H.
    lengths: (Q, S); with a mask, the gradient needs both even.
    masked: whether there is a mask.
  """
  return (dtype in _FUSED_DTYPES and head_dim % 8 == 0 and head_dim <= _FUSED_HEAD_DIM
          and not (masked and any(length % 2 for length in lengths)))


@functools.cache
def _device_fuses() -> bool:
  """Returns whether the default device is an NVIDIA GPU that cuDNN's attention runs on."""
  if jax.default_backend() != "gpu":
    return False
  major = str(jax.devices()[0].compute_capability).split(".")[0]  # "gfx942" on AMD
  return major.isdigit() and int(major) >= 8
