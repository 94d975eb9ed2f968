"""The latent head: LLM-wide tokens to one 32-channel latent each (UniLIP; no sampling, no KL).

`down_blocks`: residual blocks of LayerNorm → Dense → GELU → Dense; `down_mlp`: the same, narrowing.
Kernels start normal, biases at zero. The official deviation is 0.02 (PyTorch's trunc_normal_ cuts at ±2
absolute, so never). It suits a width of 896; at the tiny width latents would start near 0.
"""

from typing import Any

from flax import linen as nn
import jax

from unilip_jax.models import layers
from unilip_jax.sharding import activations

_ZEROS = nn.initializers.zeros


class LatentHead(nn.Module):
  """The head.

  Attributes:
    depth: residual blocks.
    channels: of a latent.
    init_std: deviation of the kernels at the start.
    dtype: of the computation.
  """

  depth: int
  channels: int
  init_std: float
  dtype: Any

  @nn.compact
  def __call__(
      self, features: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """Maps tokens to latents.

    Args:
      features: [B, L, C], row by row.
      grid: tokens per column and row, L = h·w; None for a square.

    Returns:
      dtype[B, h, w, c].
    """
    x = DownBlocks(self.depth, self.init_std, self.dtype, name="down_blocks")(features)
    x = NormMlp(self.channels, 1e-5, self.init_std, self.dtype, name="down_mlp")(x)
    h, w = grid or (round(x.shape[1] ** 0.5),) * 2
    return x.reshape(x.shape[0], h, w, self.channels)


class DownBlocks(nn.Module):
  """The scanned residual blocks."""

  depth: int
  init_std: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x, _ = layers.scan(DownBlock, self.depth)(
        self.init_std, self.dtype, name="layers")(x.astype(self.dtype))
    return x


class DownBlock(nn.Module):
  """x + Dense(GELU(Dense(LayerNorm(x)))), the body of the scan."""

  init_std: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    x = activations.constrain(x, "batch")
    width, init = x.shape[-1], nn.initializers.normal(self.init_std)
    y = layers.LayerNorm(1e-6, self.dtype, name="norm")(x)
    y = layers.Dense(width, self.dtype, init, _ZEROS, name="fc1")(y)
    y = layers.Dense(width, self.dtype, init, _ZEROS, name="fc2")(nn.gelu(y, approximate=False))
    return x + y, None


class NormMlp(nn.Module):
  """LayerNorm → Dense → GELU → Dense, all to `features`."""

  features: int
  eps: float
  init_std: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.normal(self.init_std)
    x = layers.LayerNorm(self.eps, self.dtype, name="norm")(x)
    x = layers.Dense(self.features, self.dtype, init, _ZEROS, name="fc1")(x)
    x = nn.gelu(x, approximate=False)
    return layers.Dense(self.features, self.dtype, init, _ZEROS, name="fc2")(x)
