"""UniLIP's reconstruction tokenizer: CLIP ViT → mlp1 → latent head → pixel decoder (section 3.1).

Pixels 448 → 32×32 patches → 16×16 tokens → latents 16×16×32 → decoder 512×512 → resized to 448.
"""

from typing import Any

from flax import linen as nn
import jax

from unilip_jax.models import dcae, latent_head, presets, projector
from unilip_jax.models.vision import internvit
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations

MODULES = ("vision_tower", "mlp1", "latent_head", "decoder")  # names of the parts in a parameter tree


class Tokenizer(nn.Module):
  """The assembled model.

  Attributes:
    dims: sizes.
    dtype: of the computation.
    remat_vit: policy of a ViT layer (layers.remat).
    remat_decoder: policy of a decoder block.
  """

  dims: presets.TokenizerDims
  dtype: Any
  remat_vit: str = "none"
  remat_decoder: str = "none"

  def setup(self):
    d = self.dims
    self.vision_tower = internvit.InternVit(d.vit, self.dtype, self.remat_vit)
    self.mlp1 = projector.Mlp1(d.llm_width, self.dtype)
    self.latent_head = latent_head.LatentHead(
        d.latent_depth, d.latent_channels, d.latent_init_std, self.dtype)
    self.decoder = dcae.Decoder(d.decoder, self.dtype, self.remat_decoder)

  @property
  def side(self) -> int:
    """Pixels per side of one token, and so of one latent."""
    return self.dims.vit.pixels_per_token

  def features(self, image_imagenet: jax.Array) -> jax.Array:
    """mlp1's output, what the LLM sees and distillation compares.

    Args:
      image_imagenet: float32[B, H, W, 3], H and W multiples of 28: two patches a token.

    Returns:
      dtype[B, L, C], tokens row by row.

    Raises:
      ValueError: if the image is not whole tokens.
    """
    patch = self.dims.vit.patch
    grid = (image_imagenet.shape[1] // patch, image_imagenet.shape[2] // patch)
    x = activations.constrain(projector.pixel_unshuffle(self.vision_tower(image_imagenet), grid), "batch")
    return activations.constrain(self.mlp1(x), "batch")

  def latents(self, features: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """[B, L, C] -> [B, h, w, c]; `grid` is (h, w), None for a square."""
    return self.latent_head(features, grid)

  def encode(self, image_imagenet: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(latents [B, h, w, c], features [B, L, C]) of float32[B, H, W, 3], ImageNet-normalised."""
    features = self.features(image_imagenet)
    grid = (image_imagenet.shape[1] // self.side, image_imagenet.shape[2] // self.side)
    return self.latents(features, grid), features

  def decode(
      self, latents: jax.Array, size: tuple[int, int], *, align_corners: bool = False) -> jax.Array:
    """Decodes and resizes from 32 to 28 pixels a token.

    Args:
      latents: [B, h, w, c].
      size: (H, W) of the result.
      align_corners: of the resize; the padded 256-px protocol uses True.

    Returns:
      float32[B, H, W, 3], about [-1, 1].
    """
    return image_ops.resize_bilinear(self.decoder(latents), *size, align_corners=align_corners)

  def __call__(
      self, image_imagenet: jax.Array, *, align_corners: bool = False) -> dict[str, jax.Array]:
    """Reconstructs.

    Args:
      image_imagenet: float32[B, H, W, 3], H and W multiples of 28.
      align_corners: see `decode`.

    Returns:
      reconstruction float32[B, H, W, 3], latents and features.
    """
    latents, features = self.encode(image_imagenet)
    reconstruction = self.decode(
        latents, image_imagenet.shape[1:3], align_corners=align_corners)
    return {"reconstruction": reconstruction, "latents": latents, "features": features}
