"""Softmax attention: the one place that picks a kernel.

NVIDIA GPUs of Ampere or later, half precision: cuDNN's fused attention. Elsewhere XLA. Scores and
softmax are float32 in both.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.ops import backend

_FUSED_DTYPES = (jnp.bfloat16, jnp.float16)
_FUSED_HEAD_DIM = 128  # cuDNN's largest on every architecture; Hopper alone takes 256


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None = None,
    causal: bool = False
) -> jax.Array:
  """softmax(q kᵀ / √H) v.

  Args:
    q: float[B, Q, N, H].
    k: float[B, S, K, H], N a multiple of K (grouped-query attention).
    v: float[B, S, K, H].
    mask: bool, broadcastable to [B, N, Q, S]; True where a query may look.
    causal: query i sees keys up to i only.

  Returns:
    float[B, Q, N, H] in q's dtype.
  """
  lengths = (q.shape[1], k.shape[1])
  fits = fits_cudnn(q.dtype, q.shape[-1], lengths, mask is not None)
  if backend.planned():
    return _planned(q, k, v, mask, causal, keeps_inputs=backend.name() == "gpu" and fits)
  fused = _device_fuses() and fits
  if fused and mask is not None:
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], *lengths))  # cuDNN takes whole [Q, S] planes
  return jax.nn.dot_product_attention(
      q, k, v, mask=mask, is_causal=causal, implementation="cudnn" if fused else "xla")


def _planned(q, k, v, mask, causal: bool, keeps_inputs: bool) -> jax.Array:
  """XLA's attention, for devices that are not here.

  cuDNN cannot be traced without a GPU; rematerialised, XLA's keeps for the backward pass what cuDNN's
  keeps, q, k and v.
  """
  attend = lambda q, k, v: jax.nn.dot_product_attention(
      q, k, v, mask=mask, is_causal=causal, implementation="xla")
  return (jax.checkpoint(attend) if keeps_inputs else attend)(q, k, v)


def fits_cudnn(dtype: Any, head_dim: int, lengths: tuple[int, int], masked: bool) -> bool:
  """Whether cuDNN's kernel and its gradient take these shapes.

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
  """Whether the default device is an NVIDIA GPU that cuDNN's attention runs on."""
  if jax.default_backend() != "gpu":
    return False
  major = str(jax.devices()[0].compute_capability).split(".")[0]  # "gfx942" on AMD
  return major.isdigit() and int(major) >= 8
