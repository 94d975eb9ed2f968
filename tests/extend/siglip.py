"""SigLIP 2's vision tower (arXiv 2502.14786): the example of a second tower in docs/extend.md.

Pre-LN transformer with learned positions and GELU (tanh), without a class token, and a LayerNorm at the
end. Its head, attention pooling, is left out. As with InternViT a token of the result is 2×2 patches.
Reference: transformers' SiglipVisionModel.
"""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax

from unilip_jax.models import layers
from unilip_jax.models.vision import base, internvit
from unilip_jax.ops import attention
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations

_EPS = 1e-6
_MERGED = 2  # patches per side of one token


@dataclasses.dataclass(frozen=True)
class SiglipDims(base.VisionDims):
  """Sizes; names as in models/presets.py."""

  kind: ClassVar[str] = "siglip"

  depth: int
  width: int
  heads: int
  mlp: int
  patch: int
  image_size: int

  @property
  def pixels_per_token(self) -> int:
    return _MERGED * self.patch

  @property
  def token_width(self) -> int:
    return _MERGED**2 * self.width


class Siglip(base.VisionTower):
  """The tower; attributes as of `base.VisionTower`."""

  dims: SiglipDims

  Dims: ClassVar[type[base.VisionDims]] = SiglipDims

  @nn.compact
  def __call__(self, unit: jax.Array) -> jax.Array:
    d = self.dims
    h, w = (_MERGED * n for n in self.grid(unit))
    signed = image_ops.signed_from_unit(unit)  # the normalisation that its weights expect
    patches = signed.reshape(-1, h, d.patch, w, d.patch, 3).transpose(0, 1, 3, 2, 4, 5)
    x = internvit.PatchEmbed(d.width, d.patch, self.dtype, name="patch_embed")(
        patches.reshape(-1, h * w, 3 * d.patch**2))
    side = d.image_size // d.patch
    positions = self.param("pos_embed", nn.initializers.normal(d.width**-0.5), (side**2, d.width))
    if (h, w) != (side, side):
      positions = image_ops.resize_bicubic(positions.reshape(1, side, side, d.width), h, w)
    x += positions.reshape(1, h * w, d.width).astype(x.dtype)
    x, _ = layers.scan(Layer, d.depth, self.remat)(d, self.dtype, name="layers")(x)
    x = layers.LayerNorm(_EPS, self.dtype, name="norm")(x)
    return internvit.pixel_unshuffle(x, h, w)


class Layer(nn.Module):
  """x + attention(norm x), then x + mlp(norm x): [B, L, D] -> ([B, L, D], None)."""

  dims: SiglipDims
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    d = self.dims
    x = activations.constrain(x, "batch")
    y = layers.LayerNorm(_EPS, self.dtype, name="norm1")(x)
    qkv = layers.Dense(3 * d.width, self.dtype, name="qkv")(y)
    q, k, v = (y.reshape(*y.shape[:2], d.heads, -1) for y in qkv.reshape(
        *qkv.shape[:2], 3, d.width).transpose(2, 0, 1, 3))
    y = attention.attention(q, k, v).reshape(x.shape)
    x = x + layers.Dense(d.width, self.dtype, name="out")(y)
    y = layers.LayerNorm(_EPS, self.dtype, name="norm2")(x)
    y = nn.gelu(layers.Dense(d.mlp, self.dtype, name="fc1")(y), approximate=True)
    return x + layers.Dense(d.width, self.dtype, name="fc2")(y), None
