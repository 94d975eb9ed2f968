"""Embeds the times of the diffusion transformer, and the lengths of a few-step network's steps."""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.models import layers

FEATURES = 256  # of `sinusoids`


class TimeEmbedding(nn.Module):
  """256 sinusoids [cos, sin] → Dense → SiLU → Dense; float32[B] -> [B, width]."""

  width: int
  dtype: Any
  smoothing: float = 0.0

  @nn.compact
  def __call__(self, time: jax.Array) -> jax.Array:
    x = layers.Dense(self.width, self.dtype, name="fc1")(
        sinusoids(time.astype(jnp.float32), self.smoothing))
    return layers.Dense(self.width, self.dtype, name="fc2")(jax.nn.silu(x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def sinusoids(time: jax.Array, smoothing: float = 0.0) -> jax.Array:
  """Embeds times as cosines, then sines, of frequencies 1 … 1/10000.

  Flow networks are trained at whole times only, and may do anything between them: the derivative with
  respect to the time is noise there. `smoothing` averages it over a window; values do not change.

  Args:
    time: float32[B].
    smoothing: half the width of the window, in units of the time; 0 is the exact derivative.

  Returns:
    float32[B, 256].
  """
  angle = time[:, None] * _time_frequencies()
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


@sinusoids.defjvp
def _sinusoids_jvp(smoothing, primals, tangents):
  (time,), (change,) = primals, tangents
  frequency = _time_frequencies()
  angle = time[:, None] * frequency
  # The mean of the derivative over a window is the difference of its ends, here by the sum formulas.
  slope = frequency * jnp.sinc(frequency * smoothing / np.pi)
  derivative = jnp.concatenate([-slope * jnp.sin(angle), slope * jnp.cos(angle)], axis=-1)
  return sinusoids(time, smoothing), change[:, None] * derivative


def _time_frequencies() -> jax.Array:
  half = FEATURES // 2
  return jnp.exp(-np.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half)[None]  # [1, F]


def init_interval(key: jax.Array, width: int) -> dict[str, Any]:
  """Samples the weights of the interval's embedding; its last layer is 0, so that it changes nothing."""
  params = TimeEmbedding(width, jnp.float32).init(key, jnp.zeros((1,)))["params"]
  return dict(params) | {"fc2": jax.tree.map(jnp.zeros_like, params["fc2"])}
