"""Pixel unshuffle and mlp1: from ViT patches to tokens of the LLM's width (InternVL)."""

from typing import Any

from flax import linen as nn
import jax

from unilip_jax.models import layers

_EPS = 1e-5


def pixel_unshuffle(x: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
  """Drops the class token and merges 2×2 patches into one token.

  Args:
    x: [B, 1+L, D].
    grid: patches per column and row, L = h·w; None for a square.

  Returns:
    [B, L/4, 4D]: channels in the order (r0c0, r0c1, r1c0, r1c1), tokens row by row.

  Raises:
    ValueError: if a side of the grid is odd.
  """
  b, n, d = x.shape
  h, w = grid or (round((n - 1) ** 0.5),) * 2
  if h % 2 or w % 2 or h * w != n - 1:
    raise ValueError(f"{n - 1} patches are no grid of even sides ({h}×{w}); "
                     "the image's sides must be multiples of two patches")
  x = x[:, 1:].reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * w // 4, 4 * d)


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
