"""Building blocks of DC-AE (arXiv 2410.10733): ResBlock, EfficientViT block, up- and downsampling.

Reference: diffusers' AutoencoderDC. Images are NHWC; a channel that PyTorch reshapes as (C, 2, 2) keeps
that order. Batch norm runs on its stored statistics, which are parameters without a gradient: a step
never updates them, unlike PyTorch's training mode.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from unilip_jax.models import layers
from unilip_jax.ops import resample

_NORM_EPS = 1e-5
_ATTENTION_EPS = 1e-15
_GLU_RATIO = 4

ACTIVATIONS = {"silu": jax.nn.silu, "swish": jax.nn.silu, "relu": jax.nn.relu,
               "relu6": jax.nn.relu6, "mish": jax.nn.mish,
               "gelu": lambda x: jax.nn.gelu(x, approximate=False)}
BLOCKS = ("ResBlock", "EfficientViTBlock")
NORMS = ("rms_norm", "batch_norm")
UPSAMPLING = ("interpolate", "pixel_shuffle")
DOWNSAMPLING = ("Conv", "pixel_unshuffle")


def activation(name: str):
  """Returns the function of that name.

  Raises:
    ValueError: for a name that diffusers lacks too.
  """
  if name not in ACTIVATIONS:
    raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
  return ACTIVATIONS[name]


class BatchNorm(nn.Module):
  """Batch norm on stored statistics: a scale and shift per channel, in float32."""

  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    scale, bias = self.param("scale", ones, (width,)), self.param("bias", zeros, (width,))
    mean = jax.lax.stop_gradient(self.param("mean", zeros, (width,)))
    var = jax.lax.stop_gradient(self.param("var", ones, (width,)))
    factor = scale * jax.lax.rsqrt(var + _NORM_EPS)
    lead = (None,) * (x.ndim - 1)
    return (x.astype(jnp.float32) * factor[lead] + (bias - mean * factor)[lead]).astype(self.dtype)


def make_norm(kind: str, dtype: Any, name: str) -> nn.Module:
  """Makes the norm that a config names.

  Raises:
    ValueError: for a kind that no published config uses.
  """
  if kind == "rms_norm":
    return layers.RMSNorm(_NORM_EPS, dtype, use_bias=True, name=name)
  if kind == "batch_norm":
    return BatchNorm(dtype, name=name)
  raise ValueError(f"unknown norm {kind!r}; known: {', '.join(NORMS)}")


class ResBlock(nn.Module):
  """x + norm(conv2(act(conv1 x)))."""

  norm: str
  act: str
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    y = layers.Conv(width, 3, self.dtype, name="conv1")(x)
    y = layers.Conv(width, 3, self.dtype, use_bias=False, name="conv2")(activation(self.act)(y))
    return x + make_norm(self.norm, self.dtype, "norm")(y)


class EfficientVitBlock(nn.Module):
  """Multi-scale linear attention, then GLU-MBConv, each with a residual."""

  head_dim: int
  scales: tuple[int, ...]
  norm: str
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + MultiscaleAttention(
        self.head_dim, self.scales, self.norm, self.dtype, name="attn")(x)
    return x + GluMbConv(self.dtype, name="conv_out")(x)


class MultiscaleAttention(nn.Module):
  """ReLU attention over pixels, on q, k, v and on their depthwise-aggregated copies.

  q, k and v are cut from the concatenated channels in groups of 3·head_dim. The linear form applies when
  H·W > head_dim, the quadratic one otherwise; both in float32.
  """

  head_dim: int
  scales: tuple[int, ...]
  norm: str
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, width = x.shape
    inner = width // self.head_dim * self.head_dim
    dense = lambda name: layers.Dense(inner, self.dtype, use_bias=False, name=name)(x)
    qkv = jnp.concatenate([dense("to_q"), dense("to_k"), dense("to_v")], axis=-1)
    multiscale = [qkv]
    for i, side in enumerate(self.scales):
      y = layers.Depthwise(side, self.dtype, use_bias=False, name=f"multiscale_{i}_in")(qkv)
      multiscale.append(GroupedDense(self.head_dim, self.dtype, name=f"multiscale_{i}_out")(y))
    qkv = jnp.concatenate(multiscale, axis=-1).astype(jnp.float32)
    qkv = qkv.reshape(b, h * w, -1, 3 * self.head_dim)
    q, k, v = jnp.split(qkv, 3, axis=-1)  # each [B, S, N, H]
    y = _relu_attention(jax.nn.relu(q), jax.nn.relu(k), v).astype(self.dtype)
    y = layers.Dense(width, self.dtype, use_bias=False, name="to_out")(y.reshape(b, h, w, -1))
    return make_norm(self.norm, self.dtype, "norm_out")(y)


def _relu_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Attends with weights q·k / Σ q·k over keys; float32[B, S, N, H] each."""
  if q.shape[1] > q.shape[-1]:
    summary = jnp.einsum("bsnh,bsnj->bnhj", k, v)
    numerator = jnp.einsum("bqnh,bnhj->bqnj", q, summary)
    denominator = jnp.einsum("bqnh,bnh->bqn", q, k.sum(1))
    return numerator / (denominator + _ATTENTION_EPS)[..., None]
  scores = jnp.einsum("bqnh,bsnh->bnqs", q, k)
  scores /= scores.sum(-1, keepdims=True) + _ATTENTION_EPS
  return jnp.einsum("bnqs,bsnh->bqnh", scores, v)


class GroupedDense(nn.Module):
  """A 1×1 convolution in groups of `size` channels: kernel [groups, size, size]."""

  size: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    groups = x.shape[-1] // self.size
    kernel = self.param("kernel", layers.torch_uniform(self.size), (groups, self.size, self.size))
    y = x.reshape(-1, groups, self.size).astype(self.dtype)
    return jnp.einsum("sgi,gio->sgo", y, kernel.astype(self.dtype)).reshape(x.shape)


class GluMbConv(nn.Module):
  """1×1 up → SiLU → depthwise 3×3 → gate → 1×1 down → RMSNorm."""

  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = _GLU_RATIO * x.shape[-1]
    y = layers.Dense(2 * hidden, self.dtype, name="conv_inverted")(x)
    y = layers.Depthwise(3, self.dtype, use_bias=True, name="conv_depth")(jax.nn.silu(y))
    value, gate = jnp.split(y, 2, axis=-1)
    y = layers.Dense(x.shape[-1], self.dtype, use_bias=False, name="conv_point")(
        value * jax.nn.silu(gate))
    return layers.RMSNorm(_NORM_EPS, self.dtype, use_bias=True, name="norm")(y)


class Upsample(nn.Module):
  """×2: nearest then convolution, or convolution then pixel shuffle; a channel-repeating shortcut."""

  features: int
  kind: str
  dtype: Any
  shortcut: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.kind == "interpolate":
      y = layers.Conv(self.features, 3, self.dtype, doubled=True, name="conv")(x)
    elif self.kind == "pixel_shuffle":
      y = resample.pixel_shuffle(layers.Conv(4 * self.features, 3, self.dtype, name="conv")(x))
    else:
      raise ValueError(f"unknown upsampling {self.kind!r}; known: {', '.join(UPSAMPLING)}")
    if not self.shortcut:
      return y
    return y + resample.shuffle_repeated(x, self.features)


class Downsample(nn.Module):
  """÷2: strided convolution, or convolution then pixel unshuffle; a channel-averaging shortcut."""

  features: int
  kind: str
  dtype: Any
  shortcut: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.kind == "Conv":
      y = layers.Conv(self.features, 3, self.dtype, stride=2, name="conv")(x)
    elif self.kind == "pixel_unshuffle":
      y = resample.pixel_unshuffle(layers.Conv(self.features // 4, 3, self.dtype, name="conv")(x))
    else:
      raise ValueError(f"unknown downsampling {self.kind!r}; known: {', '.join(DOWNSAMPLING)}")
    if not self.shortcut:
      return y
    unshuffled = resample.pixel_unshuffle(x)
    return y + unshuffled.reshape(*unshuffled.shape[:-1], self.features, -1).mean(-1)
