"""UniLIP's reconstruction tokenizer: vision tower → mlp1 → latent head → pixel decoder (section 3.1).

With InternViT: pixels 448 → 32×32 patches → 16×16 tokens → latents 16×16×32 → decoder 512×512 → resized to
448.
"""

from typing import Any

from flax import linen as nn
import jax

from unilip_jax.models import dcae, latent_head, presets, projector
from unilip_jax.models.vision import base as vision
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations

MODULES = ("vision_tower", "mlp1", "latent_head", "decoder")  # keys of the parameter tree


class Tokenizer(nn.Module):
  """The assembled model.

  Attributes:
    dims: sizes; they choose the vision tower.
    dtype: of the computation.
    remat_vit: policy of a layer of the vision tower (layers.remat).
    remat_decoder: policy of a decoder block.
  """

  dims: presets.TokenizerDims
  dtype: Any
  remat_vit: str = "none"
  remat_decoder: str = "none"

  def setup(self):
    d = self.dims
    self.vision_tower = vision.make_tower(d.vit, self.dtype, self.remat_vit)
    self.mlp1 = projector.Mlp1(d.llm_width, self.dtype)
    self.latent_head = latent_head.LatentHead(
        d.latent_depth, d.latent_channels, d.latent_init_std, self.dtype)
    self.decoder = dcae.Decoder(d.decoder, self.dtype, self.remat_decoder)

  @property
  def side(self) -> int:
    """Pixels per side of one token, and so of one latent."""
    return self.dims.vit.pixels_per_token

  def features(self, unit: jax.Array) -> jax.Array:
    """Computes mlp1's output, which the LLM reads and distillation compares.

    Args:
      unit: float32[B, H, W, 3] in [0, 1], H and W multiples of `side`.

    Returns:
      dtype[B, L, C], tokens row by row.

    Raises:
      ValueError: if a side is not a multiple of `side`.
    """
    x = self.vision_tower(unit)
    x = activations.constrain(x.reshape(x.shape[0], -1, x.shape[-1]), "batch")
    return activations.constrain(self.mlp1(x), "batch")

  def latents(self, features: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """Maps features to latents: [B, L, C] -> [B, h, w, c]; `grid` is (h, w), None for a square."""
    return self.latent_head(features, grid)

  def encode(self, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encodes images: float32[B, H, W, 3] in [0, 1] -> (latents [B, h, w, c], features [B, L, C])."""
    features = self.features(unit)
    return self.latents(features, self.vision_tower.grid(unit)), features

  def decode(
      self, latents: jax.Array, size: tuple[int, int], *, align_corners: bool = False) -> jax.Array:
    """Decodes latents and resizes the image: the decoder makes 32 pixels a token, InternViT takes 28.

    Args:
      latents: [B, h, w, c].
      size: (H, W) of the result.
      align_corners: of the resize; the padded 256-px protocol uses True.

    Returns:
      float32[B, H, W, 3], about [-1, 1].
    """
    return image_ops.resize_bilinear(self.decoder(latents), *size, align_corners=align_corners)

  def __call__(
      self, unit: jax.Array, *, align_corners: bool = False) -> dict[str, jax.Array]:
    """Reconstructs images.

    Args:
      unit: float32[B, H, W, 3] in [0, 1], H and W multiples of `side`.
      align_corners: see `decode`.

    Returns:
      reconstruction float32[B, H, W, 3], about [-1, 1]; latents and features.
    """
    latents, features = self.encode(unit)
    reconstruction = self.decode(latents, unit.shape[1:3], align_corners=align_corners)
    return {"reconstruction": reconstruction, "latents": latents, "features": features}
