"""InternViT: the CLIP vision tower (InternViT-300M-448px-V2.5; InternVL3, arXiv 2504.10479).

Pre-LN transformer with a class token first, learned absolute positions, fused qkv with bias, exact
GELU and LayerScale on both branches; no final norm. A token of the result is 2×2 patches. Drop-path is
left out: the official stage 1 leaves it on in the frozen encoder by mistake, and evaluation has none.
"""

from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from unilip_jax.models import layers, presets
from unilip_jax.models.vision import base
from unilip_jax.ops import attention, matmul
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations

_EPS = 1e-6
_ZEROS = nn.initializers.zeros


class InternVit(base.VisionTower):
  """The tower; attributes as of `base.VisionTower`."""

  dims: presets.VitDims

  Dims: ClassVar[type[base.VisionDims]] = presets.VitDims

  def __call__(self, unit: jax.Array) -> jax.Array:
    """Encodes images: see `base.VisionTower`; they are normalised by ImageNet's statistics."""
    h, w = self.grid(unit)
    states = self.hidden_states(image_ops.imagenet_from_unit(unit))
    return pixel_unshuffle(states[:, 1:], 2 * h, 2 * w)

  @nn.compact
  def hidden_states(self, image_imagenet: jax.Array) -> jax.Array:
    """Runs the transformer.

    Args:
      image_imagenet: float32[B, H, W, 3], H and W multiples of the patch side; positions are
        interpolated where a side is not `dims.image_size`.

    Returns:
      dtype[B, 1+L, D]: class token, then patches row by row.
    """
    d = self.dims
    batch, height, width, _ = image_imagenet.shape
    h, w = height // d.patch, width // d.patch
    # A convolution with stride = patch is one matrix multiplication of flattened patches.
    patches = image_imagenet.reshape(batch, h, d.patch, w, d.patch, 3)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, h * w, -1)
    x = PatchEmbed(d.width, d.patch, self.dtype, name="patch_embed")(patches)
    init = nn.initializers.normal(d.init_std)
    cls = self.param("cls_embed", init, (1, 1, d.width))
    positions = self.param("pos_embed", init, (1, 1 + d.grid**2, d.width))
    positions = resize_positions(positions, d.grid, h, w)
    x = jnp.concatenate([jnp.broadcast_to(cls, (batch, 1, d.width)).astype(x.dtype), x], axis=1)
    x += positions.astype(x.dtype)
    self.sow("intermediates", "embeddings", x)
    x, _ = layers.scan(Layer, d.depth, self.remat)(d, self.dtype, name="layers")(x)
    self.sow("intermediates", "last", x)
    return x


def pixel_unshuffle(x: jax.Array, h: int, w: int) -> jax.Array:
  """Merges 2×2 patches into one token.

  Args:
    x: [B, h·w, D], row by row.
    h: patches per column, even.
    w: patches per row, even.

  Returns:
    [B, h/2, w/2, 4D]: channels in the order (r0c0, r0c1, r1c0, r1c1).
  """
  b, _, d = x.shape
  x = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // 2, w // 2, 4 * d)


class PatchEmbed(nn.Module):
  """The patch convolution on flattened patches; the kernel keeps its [p, p, 3, D] shape."""

  width: int
  patch: int
  dtype: Any

  @nn.compact
  def __call__(self, patches: jax.Array) -> jax.Array:  # [B, L, p·p·3] -> [B, L, D]
    fan_in = 3 * self.patch**2
    init = layers.torch_uniform(fan_in)
    kernel = self.param("kernel", init, (self.patch, self.patch, 3, self.width))
    bias = self.param("bias", init, (self.width,))
    y = matmul.matmul(patches.reshape(-1, fan_in).astype(self.dtype),
                      kernel.reshape(fan_in, self.width).astype(self.dtype))
    y += bias.astype(self.dtype)[None]
    return y.reshape(*patches.shape[:-1], self.width)


class Layer(nn.Module):
  """x + ls1 · attention(norm1 x), then x + ls2 · mlp(norm2 x)."""

  dims: presets.VitDims
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    d = self.dims
    x = activations.constrain(x, "batch")
    ls_init = nn.initializers.constant(d.layer_scale_init)
    ls1 = self.param("ls1", ls_init, (d.width,)).astype(self.dtype)[None, None]
    ls2 = self.param("ls2", ls_init, (d.width,)).astype(self.dtype)[None, None]
    y = layers.LayerNorm(_EPS, self.dtype, name="norm1")(x)
    x = x + ls1 * Attention(d, self.dtype, name="attn")(y)
    y = layers.LayerNorm(_EPS, self.dtype, name="norm2")(x)
    init = nn.initializers.normal(d.init_std)
    mlp = layers.Mlp(d.mlp, d.width, self.dtype, kernel_init=init, bias_init=_ZEROS, name="mlp")
    return x + ls2 * mlp(y), None


class Attention(nn.Module):
  """Self-attention with one fused qkv projection, output order q, k, v by head."""

  dims: presets.VitDims
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    d = self.dims
    b, l, _ = x.shape
    init = dict(kernel_init=nn.initializers.normal(d.init_std), bias_init=_ZEROS)
    qkv = layers.Dense(3 * d.width, self.dtype, **init, parts=3, name="qkv")(x)
    y = attention.attention(*(part.reshape(b, l, d.heads, -1) for part in qkv))
    return layers.Dense(d.width, self.dtype, **init, name="proj")(y.reshape(b, l, d.width))


def resize_positions(positions: jax.Array, grid: int, h: int, w: int) -> jax.Array:
  """Interpolates the patch part of a position embedding; the class part stays.

  Args:
    positions: float32[1, 1+grid², D].
    grid: patches per side of `positions`.
    h: patches per column wanted.
    w: patches per row wanted.

  Returns:
    float32[1, 1+h·w, D], by PyTorch's bicubic (a = −0.75, no antialias).
  """
  if (h, w) == (grid, grid):
    return positions
  patch = positions[:, 1:].reshape(1, grid, grid, -1)
  patch = image_ops.resize_bicubic(patch, h, w).reshape(1, h * w, -1)
  return jnp.concatenate([positions[:, :1], patch], axis=1)
