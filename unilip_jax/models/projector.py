"""mlp1: from the vision tower's tokens to the LLM's width (InternVL)."""

from typing import Any

from flax import linen as nn
import jax

from unilip_jax.models import layers

_EPS = 1e-5


class Mlp1(nn.Module):
  """LayerNorm → Dense → GELU → Dense to `width`."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Projects tokens of any width: [B, L, D] -> dtype[B, L, width]."""
    x = layers.LayerNorm(_EPS, self.dtype, name="norm")(x)
    x = layers.Dense(self.width, self.dtype, name="fc1")(x)
    return layers.Dense(self.width, self.dtype, name="fc2")(nn.gelu(x, approximate=False))
