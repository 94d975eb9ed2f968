"""Softmax attention: the one place that picks a kernel.

GPU, half precision: cuDNN's fused attention. Elsewhere XLA, with float32 scores and softmax.
"""

import jax
import jax.numpy as jnp

_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)


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
  fused = jax.default_backend() == "gpu" and q.dtype in _CUDNN_DTYPES and q.shape[-1] % 8 == 0
  return jax.nn.dot_product_attention(
      q, k, v, mask=mask, is_causal=causal, implementation="cudnn" if fused else "xla")
