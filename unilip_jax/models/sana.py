"""SANA: the diffusion transformer with linear attention (arXiv 2410.10629).

Reference: diffusers' SanaTransformer2DModel, patch side 1. Self-attention is ReLU-linear in float32. The
queries of cross-attention come from the un-normalised stream. The feed-forward part is a gated depthwise
convolution. One shared projection of the time gives every layer's modulation (adaLN-single).
"""

from collections.abc import Callable
from typing import Any

import chex
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.models import layers, presets, time_embedding
from unilip_jax.ops import attention, backend
from unilip_jax.sharding import activations


@struct.dataclass
class CrossKV:
  """Keys and values of conditioning states in cross-attention; independent of latents and time.

  Attributes:
    keys: [B, S, inner] of one layer, after qk-norm; [depth, B, S, inner] of all.
    values: the same shape.
  """

  keys: jax.Array
  values: jax.Array


Context = jax.Array | CrossKV
Contexts = Context | tuple[Context, ...]
_NORM_EPS = 1e-6
_RMS_EPS = 1e-5
_ATTENTION_EPS = 1e-15
_TILE = 8  # rows of a TPU's tile


class Sana(nn.Module):
  """The transformer.

  Attributes:
    dims: sizes.
    dtype: of the computation.
    remat: policy of one layer (layers.remat).
    time_smoothing: of derivatives with respect to the time (models/time_embedding.py).
  """

  dims: presets.DitDims
  dtype: Any
  remat: str = "none"
  time_smoothing: float = 0.0

  @nn.compact
  def __call__(
      self, latents: jax.Array, time: jax.Array, context: Contexts, context_mask: Contexts,
      interval: jax.Array | None = None
  ) -> jax.Array:
    """Predicts the velocity ε − x.

    Args:
      latents: float32[B, h, w, C], noisy.
      time: float32[B], 0 … 1000; 1000 is pure noise.
      context: [B, S, caption_width] conditioning states; or [B/k, S, …], each for k consecutive latents,
        whose keys and values are then computed once. Or the `CrossKV` of such states in all layers
        (`precompute_cross_kv`). Or a tuple of states, of any lengths S, one for each part of a batch
        that `activations.join` joined: one pass over the weights serves all parts.
      context_mask: bool[B, S] or bool[B/k, S], or a tuple of those; False for pads, which are last where
        `attention.by_length()`.
      interval: dtype[B, width], the embedded length of the step of a few-step network; it is added to the
        embedded time.

    Returns:
      float32[B, h, w, C].
    """
    d = self.dims
    b, h, w, channels = latents.shape
    chex.assert_shape(time, (b,))
    x = layers.Dense(d.width, self.dtype, name="patch_embed")(latents.reshape(b, h * w, channels))
    if d.positions:
      x += jnp.asarray(position_embedding(h, w, d.width, d.grid), x.dtype)[None]
    embedded = time_embedding.TimeEmbedding(
        d.width, self.dtype, self.time_smoothing, name="time_embed")(time)
    if interval is not None:
      embedded += interval
    embedded = activations.constrain(embedded, "batch")
    modulation = layers.Dense(6 * d.width, self.dtype, name="time_modulation")(
        jax.nn.silu(embedded)).reshape(b, 6, d.width)
    modulation = activations.constrain(modulation, "batch")
    contexts = _several(context)
    precomputed = isinstance(contexts[0], CrossKV)
    if not precomputed:
      caption = CaptionProjection(d.width, self.dtype, name="caption")
      contexts = tuple(activations.constrain(caption(c), "batch") for c in contexts)
    masks = tuple(mask[:, None, None] for mask in _several(context_mask))
    stack = layers.scan(
        Layer, d.depth, self.remat,
        in_axes=(0 if precomputed else layers.BROADCAST, layers.BROADCAST, layers.BROADCAST))
    x, _ = stack(d, (h, w), self.dtype, name="layers")(x, contexts, masks, modulation)
    table = self.param("scale_shift", _table_init(d.width), (2, d.width))
    shift, scale = jnp.split(
        table.astype(self.dtype)[None] + embedded[:, None].astype(self.dtype), 2, axis=1)
    x = layer_norm(x, self.dtype) * (1 + scale) + shift
    x = layers.Dense(channels, jnp.float32, name="out")(x.astype(jnp.float32))
    return x.reshape(b, h, w, channels)


def precompute_cross_kv(dims: presets.DitDims, dtype: Any, params: Any, context: jax.Array) -> CrossKV:
  """Computes keys and values of conditioning states in every layer, for many calls with the same states.

  Args:
    dims: sizes.
    dtype: of the computation.
    params: of `Sana`.
    context: [B, S, caption_width].

  Returns:
    [depth, B, S, inner] each: 2 · depth · B · S · inner numbers.
  """
  caption = CaptionProjection(dims.width, dtype)
  states = activations.constrain(caption.apply({"params": params["caption"]}, context), "batch")
  project = CrossKVProjection(dims, dtype)
  return jax.vmap(lambda layer: project.apply({"params": layer}, states))(params["layers"]["cross"])


def _several(x: Any) -> tuple[Any, ...]:
  return x if isinstance(x, tuple) else (x,)


def _table_init(width: int):
  return nn.initializers.normal(width**-0.5)


class CaptionProjection(nn.Module):
  """Dense → GELU (tanh) → Dense → RMSNorm: the conditioning states in the DiT's width."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, context: jax.Array) -> jax.Array:
    x = layers.Dense(self.width, self.dtype, name="fc1")(context)
    x = layers.Dense(self.width, self.dtype, name="fc2")(nn.gelu(x, approximate=True))
    return layers.RMSNorm(_RMS_EPS, self.dtype, name="norm")(x)


def position_embedding(h: int, w: int, width: int, grid: int) -> np.ndarray:
  """Computes sine-cosine positions as diffusers before 0.33 adds them to SANA.

  Args:
    h: latents per column.
    w: latents per row.
    width: of the result, a multiple of 4.
    grid: side of the grid whose positions are 0, 1, …; others are scaled to it.

  Returns:
    float32[h·w, width]: sines and cosines of the column first, then of the row.
  """
  scale = max(grid // 64, 1)
  rows = np.arange(h, dtype=np.float32) / (h / grid) / scale
  columns = np.arange(w, dtype=np.float32) / (w / grid) / scale
  omega = 1e4 ** -(np.arange(width // 4, dtype=np.float64) / (width / 4))
  parts = [np.outer(p.reshape(-1), omega)
           for p in (np.tile(columns, h), np.repeat(rows, w))]
  return np.concatenate(
      [f(p) for p in parts for f in (np.sin, np.cos)], axis=-1).astype(np.float32)


def layer_norm(x: jax.Array, dtype: Any) -> jax.Array:
  """Applies LayerNorm without parameters, float32 inside."""
  x = x.astype(jnp.float32)
  x -= x.mean(-1, keepdims=True)
  return (x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + _NORM_EPS)).astype(dtype)


class Layer(nn.Module):
  """Modulated linear attention, cross-attention, modulated gated convolution."""

  dims: presets.DitDims
  grid: tuple[int, int]  # latents per column and row
  dtype: Any

  @nn.compact
  def __call__(self, x, contexts, masks, modulation):
    d = self.dims
    x = activations.constrain(x, "batch")
    table = self.param("scale_shift", _table_init(d.width), (6, d.width))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(
        table.astype(self.dtype)[None] + modulation.astype(self.dtype), 6, axis=1)
    y = layer_norm(x, self.dtype) * (1 + scale1) + shift1
    x = x + gate1 * LinearAttention(d, self.dtype, name="attn")(y)
    x = x + CrossAttention(d, self.dtype, name="cross")(x, contexts, masks)
    y = layer_norm(x, self.dtype) * (1 + scale2) + shift2
    return x + gate2 * GatedConv(d.mlp_ratio, self.grid, self.dtype, name="ff")(y), None


class LinearAttention(nn.Module):
  """ReLU(q) (ReLU(k)ᵀ v), normalised by the sum over keys, in float32."""

  dims: presets.DitDims
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    d = self.dims
    b, length, width = x.shape
    qkv = layers.Dense(3 * width, self.dtype, use_bias=False, name="qkv")(x)
    q, k, v = jnp.split(qkv, 3, axis=-1)
    if d.qk_norm:
      q = layers.RMSNorm(_RMS_EPS, self.dtype, name="norm_q")(q)
      k = layers.RMSNorm(_RMS_EPS, self.dtype, name="norm_k")(k)
    q, k, v = (y.reshape(b, length, d.heads, d.head_dim).astype(jnp.float32) for y in (q, k, v))
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    summary = jnp.einsum("bsnh,bsnj->bnhj", k, v)
    y = jnp.einsum("bqnh,bnhj->bqnj", q, summary)
    y /= jnp.einsum("bqnh,bnh->bqn", q, k.sum(1))[..., None] + _ATTENTION_EPS
    return layers.Dense(width, self.dtype, name="out")(y.reshape(b, length, width))


class CrossAttention(nn.Module):
  """Softmax attention from latents to the conditioning states.

  One row of states may belong to several consecutive latents. The parts of a joined batch share the
  weights; each attends to its own states.
  """

  dims: presets.DitDims
  dtype: Any

  @nn.compact
  def __call__(
      self, x: jax.Array, contexts: tuple[Context, ...], masks: tuple[jax.Array, ...]
  ) -> jax.Array:
    d = self.dims
    _, length, width = x.shape
    inner = d.cross_heads * d.cross_head_dim
    q = layers.Dense(inner, self.dtype, name="q")(x)
    if d.qk_norm:
      q = layers.RMSNorm(_RMS_EPS, self.dtype, name="norm_q")(q)
    project = _cross_kv_projection(d, self.dtype)
    cross_kvs = [c if isinstance(c, CrossKV) else project(c) for c in contexts]

    def attend(q, kv, mask):
      heads = lambda y: y.reshape(len(kv.keys), -1, d.cross_heads, d.cross_head_dim)
      y = attention.attention(heads(q), heads(kv.keys), heads(kv.values), mask=mask,
                              pads_last=attention.by_length())
      return y.reshape(-1, length, inner)

    parts = activations.part(q, [len(kv.keys) for kv in cross_kvs])
    y = activations.join([attend(*args) for args in zip(parts, cross_kvs, masks, strict=True)])
    return layers.Dense(width, self.dtype, name="out")(y)


class CrossKVProjection(nn.Module):
  """The part of CrossAttention that depends on the conditioning states alone, on the same parameters."""

  dims: presets.DitDims
  dtype: Any

  @nn.compact
  def __call__(self, context: jax.Array) -> CrossKV:
    return _cross_kv_projection(self.dims, self.dtype)(context)


def _cross_kv_projection(d: presets.DitDims, dtype: Any) -> Callable[[jax.Array], CrossKV]:
  """Makes fn([B, S, width]) -> CrossKV of one layer on the calling module's parameters kv and norm_k."""
  kv = layers.Dense(2 * d.cross_heads * d.cross_head_dim, dtype, name="kv")
  norm_k = layers.RMSNorm(_RMS_EPS, dtype, name="norm_k") if d.qk_norm else lambda k: k

  def project(context):
    k, v = jnp.split(kv(context), 2, axis=-1)
    return CrossKV(norm_k(k), v)

  return project


class GatedConv(nn.Module):
  """1×1 up → SiLU → depthwise 3×3 → gate → 1×1 down, on the latents' grid."""

  ratio: float
  grid: tuple[int, int]
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, length, width = x.shape
    hidden = int(self.ratio * width)
    x = x.reshape(b, *self.grid, width)
    # XLA lays the maps of a tile of examples out as [h, w, B, D] on TPUs. Moved here, only the narrow ones
    # are copied; the hidden ones are five times as wide.
    batch_axis = 2 if backend.name() == "tpu" and backend.on_one_device(b) >= _TILE else 0
    x = jnp.moveaxis(x, 0, batch_axis)
    y = layers.Dense(2 * hidden, self.dtype, name="up")(x)
    y = layers.Depthwise(3, self.dtype, use_bias=True, batch_axis=batch_axis, name="depthwise")(
        jax.nn.silu(y))
    value, gate = jnp.split(y, 2, axis=-1)
    y = layers.Dense(width, self.dtype, use_bias=False, name="down")(value * jax.nn.silu(gate))
    return jnp.moveaxis(y, batch_axis, 0).reshape(b, length, width)
