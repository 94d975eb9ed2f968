"""The functions that encode and reconstruct images with a tokenizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from unilip_jax.models import tokenizer as tokenizer_lib
from unilip_jax.ops import image as image_ops


def functions(
    tokenizer: tokenizer_lib.Tokenizer) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
  """Makes `encode` and `reconstruct` of (params, uint8[B, H, W, 3]); they hold no array."""
  def encode(params, pixels):
    unit = image_ops.unit_from_pixels(pixels)
    return tokenizer.apply({"params": params}, unit, method="encode")[0].astype(jnp.float32)

  def reconstruct(params, pixels):
    unit = image_ops.unit_from_pixels(pixels)
    padded, size = image_ops.pad_to_multiple(unit, tokenizer.dims.vit.pixels_per_token)
    aligned = padded.shape != unit.shape  # the official padded protocol; complete tokens need none
    out = tokenizer.apply({"params": params}, padded, align_corners=aligned)
    unit = image_ops.unpad(image_ops.unit_from_signed(out["reconstruction"]), size)
    return image_ops.pixels_from_unit(unit)

  return encode, reconstruct
