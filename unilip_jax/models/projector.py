"""Pixel unshuffle and mlp1: from ViT patches to tokens of the LLM's width (InternVL)."""

from typing import Any

from flax import linen as nn
import jax

from unilip_jax.models import layers

_EPS = 1e-5


def pixel_unshuffle(x: jax.Array) -> jax.Array:
  """Drops the class token and merges 2×2 patches into one token.

  Args:
    x: [B, 1+L, D], L a square of an even side.

  Returns:
    [B, L/4, 4D]: channels in the order (r0c0, r0c1, r1c0, r1c1), tokens row by row.

  Raises:
    ValueError: if the grid's side is odd.
  """
  b, n, d = x.shape
  side = round((n - 1) ** 0.5)
  if side % 2 or side * side != n - 1:
    raise ValueError(f"{n - 1} patches are no square grid of an even side; "
                     "the image side must be a multiple of two patches")
  g = side // 2
  x = x[:, 1:].reshape(b, g, 2, g, 2, d).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, g * g, 4 * d)


class Mlp1(nn.Module):
  """LayerNorm → Dense → GELU → Dense to `width`."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, L, 4D] -> [B, L, width]."""
    x = layers.LayerNorm(_EPS, self.dtype, name="norm")(x)
    x = layers.Dense(self.width, self.dtype, name="fc1")(x)
    return layers.Dense(self.width, self.dtype, name="fc2")(nn.gelu(x, approximate=False))
