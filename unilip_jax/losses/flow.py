"""Flow matching: the loss of the generation stages (UniLIP section 3.2; SANA's training)."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from unilip_jax.ops import flow_schedules


def flow_loss(
    velocity: Callable[[jax.Array, jax.Array], jax.Array], latents: jax.Array, normal: jax.Array,
    noise: jax.Array, shift: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Computes mean (v(z, t) − (ε − x))² with z = (1 − σ) x + σ ε.

  Args:
    velocity: (z, float32[B] time) -> prediction like z.
    latents: float32[B, h, w, C] x, scaled.
    normal: float32[B] ~ N(0, 1), which gives the times (flow_schedules.training_times).
    noise: float32[B, h, w, C] ε.
    shift: of the times (flow_schedules.training_times).

  Returns:
    (float32[] mean, float32[B] per example).
  """
  chex.assert_equal_shape([latents, noise])
  chex.assert_shape(normal, latents.shape[:1])
  time, sigma = flow_schedules.training_times(normal, shift)
  sigma = sigma[:, None, None, None]
  noisy = (1.0 - sigma) * latents + sigma * noise
  error = velocity(noisy, time).astype(jnp.float32) - (noise - latents)
  per_example = jnp.square(error).mean((1, 2, 3))
  return per_example.mean(), per_example
