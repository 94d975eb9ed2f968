"""sCM: continuous-time consistency distillation of a flow model (SANA-Sprint, arXiv 2503.09641).

The flow network is used as a TrigFlow network without training: x_t = cos t · x + sin t · z with
latents x of standard deviation σ_d and noise z of the same, t in [0, π/2].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

SIGMA_DATA = 0.5
_SMALLEST_NORM = 0.1  # c of the tangent's normalisation

# (x_t / σ_d float32[B, h, w, C], t float32[B]) -> F float32[B, h, w, C]
TrigVelocity = Callable[[jax.Array, jax.Array], jax.Array]


def trig_velocity(velocity: Callable[[jax.Array, jax.Array], jax.Array]) -> TrigVelocity:
  """Makes F of TrigFlow from v of flow matching.

  Args:
    velocity: (z, σ float32[B] in [0, 1]) -> v, for latents of any scale.
  """
  def at(scaled, t):
    sigma = jnp.sin(t) / (jnp.sin(t) + jnp.cos(t))
    norm = jnp.sqrt(jnp.square(sigma) + jnp.square(1 - sigma))
    wide = lambda x: x[:, None, None, None]
    noisy = wide(norm) * scaled
    v = velocity(noisy, sigma)
    return (wide(1 - 2 * sigma) * noisy + wide(1 - 2 * sigma + 2 * jnp.square(sigma)) * v) / wide(norm)

  return at


def training_times(normal: jax.Array, mean: float = 0.2, std: float = 1.6) -> jax.Array:
  """Computes times t = arctan(e^(std·n + mean) / σ_d) from standard normal n, float32[B]."""
  return jnp.arctan(jnp.exp(std * normal + mean) / SIGMA_DATA)


class Terms(NamedTuple):
  """Holds the terms of the loss.

  Attributes:
    loss: float32[B], with the learned weighting.
    error: float32[B], mean (F − F⁻ − g)², before any weight.
    tangent_norm: float32[B] of g before its normalisation.
  """

  loss: jax.Array
  error: jax.Array
  tangent_norm: jax.Array


def guided_teacher(unconditional: jax.Array, conditional: jax.Array, guidance: jax.Array) -> jax.Array:
  """Computes dx_t/dt = σ_d [F_∅ + w (F_y − F_∅)] of the teacher.

  Args:
    unconditional: F of the dropped condition.
    conditional: F of the condition.
    guidance: float32[B] w.
  """
  w = guidance[:, None, None, None]
  return SIGMA_DATA * (unconditional + w * (conditional - unconditional))


def consistency_terms(
    student: TrigVelocity, noisy: jax.Array, t: jax.Array, slope: jax.Array, log_variance: jax.Array,
    warmup: float | jax.Array
) -> Terms:
  """Computes the loss of sCM.

  Args:
    student: F of the trained network.
    noisy: float32[B, h, w, C] x_t.
    t: float32[B] in (0, π/2).
    slope: dx_t/dt of the teacher.
    log_variance: float32[B] λ(t), a learned function of the time.
    warmup: ρ in [0, 1], which brings in the tangent.
  """
  wide = lambda x: x[:, None, None, None]
  cos, sin = wide(jnp.cos(t)), wide(jnp.sin(t))
  tangents = (cos * sin * slope / SIGMA_DATA, jnp.cos(t) * jnp.sin(t))
  prediction, derivative = jax.jvp(student, (noisy / SIGMA_DATA, t), tangents)
  fixed = jax.lax.stop_gradient(prediction)
  g = -jnp.square(cos) * (SIGMA_DATA * fixed - slope) - warmup * (
      cos * sin * noisy + SIGMA_DATA * derivative)
  g = jax.lax.stop_gradient(g)
  # The norm, not the mean: it grows with the number of entries.
  norm = jnp.sqrt(jnp.square(g).sum((1, 2, 3)))
  error = jnp.square(prediction - fixed - g / (wide(norm) + _SMALLEST_NORM)).mean((1, 2, 3))
  weight = jnp.exp(-log_variance) / (SIGMA_DATA * jnp.tan(t))
  return Terms(weight * error + log_variance, error, norm)
