"""Qwen2.5: the LLM of InternVL3, and the stack of its layers that the connector reuses.

Pre-norm transformer: RMSNorm, grouped-query attention with rotary positions and q, k, v biases,
SwiGLU. Reference: transformers' Qwen2 (arXiv 2412.15115). Keys and values of earlier tokens are an
explicit argument (`Cache`), for decoding and for prefixes that need no gradient.
"""

from typing import Any

import chex
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from unilip_jax.models import layers, presets
from unilip_jax.ops import attention
from unilip_jax.sharding import activations

_EPS = 1e-6


@struct.dataclass
class Cache:
  """Keys and values of earlier tokens.

  Attributes:
    k: float[depth, B, S, K, H], rotated.
    v: float[depth, B, S, K, H].
    mask: bool[B, S]; False for pads and free slots.
    slot: int32[], the first free slot, where the next tokens are written; None for a cache without free
      slots, which new tokens are appended to.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array
  slot: jax.Array | None = None


def positions_of(mask: jax.Array) -> jax.Array:
  """Computes int32[B, L] positions: cumsum(mask) − 1, and 0 for pads before the first token."""
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def with_room(cache: Cache, extra: int) -> Cache:
  """Returns the cache with `extra` free slots after its tokens."""
  pad = lambda x, axis: jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])
  return Cache(pad(cache.k, 2), pad(cache.v, 2), pad(cache.mask, 1),
               jnp.int32(cache.mask.shape[1]))


class Qwen2(nn.Module):
  """Embeddings, layers, final norm and head.

  Attributes:
    dims: sizes.
    dtype: of the computation.
    remat: policy of one layer (layers.remat).
  """

  dims: presets.LlmDims
  dtype: Any
  remat: str = "none"

  def setup(self):
    d = self.dims
    init = nn.initializers.normal(d.init_std)
    self.embedding = self.param("embedding", init, (d.rows, d.width))
    if not d.tied:
      self.head = self.param("head", init, (d.width, d.rows))
    self.stack = Stack(d, d.depth, self.dtype, self.remat)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Looks up embeddings: int32[B, L] -> dtype[B, L, D]."""
    scale = self.get_variable("params", "embedding_scale")  # of int8 weights (quantization.py)
    # The TPU's compiler turns the lookup of one row into a slice, for which it copies all of an int8 table
    # into other tiles, for every token.
    rows = jnp.concatenate([tokens, tokens]) if scale is not None and tokens.size == 1 else tokens
    x = activations.constrain(jnp.take(self.embedding, rows, axis=0), "embedded")[:tokens.shape[0]]
    if scale is not None:
      x = x * jnp.take(scale, tokens)[..., None]
    return activations.constrain(x.astype(self.dtype), "batch")

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Computes scores of the next token: [..., D] -> float32[..., rows]; rows past `vocab` are −inf."""
    d = self.dims
    head = self.embedding.T if d.tied else self.head
    scores = jnp.dot(hidden, head.astype(self.dtype), preferred_element_type=jnp.float32)
    scale = self.get_variable("params", "embedding_scale" if d.tied else "head_scale")
    if scale is not None:
      scores *= scale.reshape(*(1,) * (scores.ndim - 1), -1)
    scores = activations.constrain(scores, "batch")
    unused = jnp.arange(d.rows) >= d.vocab
    return jnp.where(unused.reshape(*(1,) * (scores.ndim - 1), -1), -jnp.inf, scores)

  def __call__(
      self, x: jax.Array, mask: jax.Array, cache: Cache | None = None,
      positions: jax.Array | None = None
  ) -> tuple[jax.Array, Cache]:
    """Runs the layers, causally; see `Stack`."""
    return self.stack(x, mask, cache, positions)

  def everything(self, tokens: jax.Array) -> jax.Array:
    """Uses every parameter, for init: int32[B, L] -> float32[B, L, rows]."""
    hidden, _ = self(self.embed(tokens), jnp.ones(tokens.shape, jnp.bool_))
    return self.logits(hidden)


class Stack(nn.Module):
  """`depth` layers and a final RMSNorm.

  Attributes:
    dims: sizes; `dims.depth` is ignored.
    depth: number of layers.
    dtype: of the computation.
    remat: policy of one layer.
    causal: whether a token sees earlier ones only.
  """

  dims: presets.LlmDims
  depth: int
  dtype: Any
  remat: str = "none"
  causal: bool = True

  @nn.compact
  def __call__(
      self, x: jax.Array, mask: jax.Array, cache: Cache | None = None,
      positions: jax.Array | None = None
  ) -> tuple[jax.Array, Cache]:
    """Runs the layers on new tokens.

    Args:
      x: [B, Q, D] embeddings of the new tokens.
      mask: bool[B, Q]; False for pads: no token attends to them, and their own outputs are meaningless.
        Where `attention.by_length()` and there is no cache, pads are last.
      cache: of the tokens before; None if there are none.
      positions: int32[B, Q]; by default cumsum of all masks − 1.

    Returns:
      (dtype[B, Q, D] final-normed states, cache with the new tokens).
    """
    length = x.shape[1]
    chex.assert_shape(mask, x.shape[:2])
    if cache is None:
      slot, seen, attend = None, mask, mask[:, None, None]
    elif cache.slot is None:
      slot, seen = None, jnp.concatenate([cache.mask, mask], axis=1)
      attend = _causal(seen, cache.mask.shape[1], length)
    else:
      slot = cache.slot
      seen = jax.lax.dynamic_update_slice(cache.mask, mask, (0, slot))
      attend = _causal(seen, slot, length)
    if positions is None:
      before = 0 if cache is None else cache.mask.sum(1, dtype=jnp.int32, keepdims=True)
      positions = positions_of(mask) + before
    rotation = rope(positions, self.dims.head_dim, self.dims.rope_theta)
    past = (None, None) if cache is None else (cache.k, cache.v)
    stack = layers.scan(
        Layer, self.depth, self.remat,
        in_axes=(0, 0, layers.BROADCAST, layers.BROADCAST, layers.BROADCAST))
    first = cache is None
    x, (k, v) = stack(
        self.dims, self.dtype, self.causal and first, first and attention.by_length(), name="layers")(
        x.astype(self.dtype), *past, attend, rotation, slot)
    x = layers.RMSNorm(_EPS, self.dtype, name="norm")(x)
    return x, Cache(k, v, seen, None if slot is None else slot + length)


def _causal(seen: jax.Array, before: int | jax.Array, length: int) -> jax.Array:
  """bool[B, 1, Q, S]: new token i sees valid slots up to `before` + i."""
  slots = jnp.arange(seen.shape[1])[None]
  reach = (before + jnp.arange(length))[:, None]
  return seen[:, None, None] & (slots <= reach)[None, None]


def rope(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """(cos, sin), each float32[B, Q, 1, H/2], of the rotary embedding."""
  frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angle = positions.astype(jnp.float32)[..., None, None] * frequency[None, None, None]
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Applies `rope` to [B, Q, N, H]; halves are paired as in transformers."""
  cos, sin = rotation
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Layer(nn.Module):
  """x + attention(norm x), then x + swiglu(norm x)."""

  dims: presets.LlmDims
  dtype: Any
  causal: bool
  pads_last: bool

  @nn.compact
  def __call__(self, x, past_k, past_v, mask, rotation, slot):
    d = self.dims
    x = activations.constrain(x, "batch")
    y = layers.RMSNorm(_EPS, self.dtype, name="norm1")(x)
    y, kv = Attention(d, self.dtype, self.causal, self.pads_last, name="attn")(
        y, past_k, past_v, mask, rotation, slot)
    x = x + y
    y = layers.RMSNorm(_EPS, self.dtype, name="norm2")(x)
    return x + SwiGlu(d, self.dtype, name="mlp")(y), kv


class Attention(nn.Module):
  """Grouped-query attention with one fused projection to q, k and v."""

  dims: presets.LlmDims
  dtype: Any
  causal: bool
  pads_last: bool

  @nn.compact
  def __call__(self, x, past_k, past_v, mask, rotation, slot):
    d = self.dims
    b, length, _ = x.shape
    init = nn.initializers.normal(d.init_std)
    sizes = (d.heads, d.kv_heads, d.kv_heads)
    qkv = layers.Dense(
        sum(sizes) * d.head_dim, self.dtype, kernel_init=init, bias_init=nn.initializers.zeros,
        name="qkv")(x).reshape(b, length, -1, d.head_dim)
    q, k, v = jnp.split(qkv, (sizes[0], sizes[0] + sizes[1]), axis=2)
    q, k = rotate(q, rotation), rotate(k, rotation)
    if slot is not None:
      k = jax.lax.dynamic_update_slice(past_k, k.astype(past_k.dtype), (0, slot, 0, 0))
      v = jax.lax.dynamic_update_slice(past_v, v.astype(past_v.dtype), (0, slot, 0, 0))
    elif past_k is not None:
      k = jnp.concatenate([past_k.astype(k.dtype), k], axis=1)
      v = jnp.concatenate([past_v.astype(v.dtype), v], axis=1)
    y = attention.attention(q, k.astype(q.dtype), v.astype(q.dtype), mask=mask, causal=self.causal,
                            pads_last=self.pads_last)
    y = layers.Dense(d.width, self.dtype, kernel_init=init, use_bias=False, name="out")(
        y.reshape(b, length, d.width))
    return y, (k, v)


class SwiGlu(nn.Module):
  """down(silu(gate x) · up x), gate and up as one projection."""

  dims: presets.LlmDims
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.normal(self.dims.init_std)
    dense = dict(dtype=self.dtype, kernel_init=init, use_bias=False)
    gate, up = jnp.split(layers.Dense(2 * self.dims.mlp, **dense, name="gate_up")(x), 2, axis=-1)
    return layers.Dense(x.shape[-1], **dense, name="down")(jax.nn.silu(gate) * up)
