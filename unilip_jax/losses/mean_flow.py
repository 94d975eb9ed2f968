"""MeanFlow: learns the average velocity of a flow, so that few large steps suffice (arXiv 2505.13447).

u(z_t, t, h) is the average of the velocity over [r, t] with h = t − r. Differentiating (t − r) u = ∫ v
gives u = v − (t − r) du/dt, where du/dt is the derivative along the path. The tangent comes from one
`jax.jvp`. Times are in [0, 1]; t = 1 is noise.
"""

from collections.abc import Callable
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

# (z float32[B, h, w, C], t float32[B], h float32[B]) -> float32[B, h, w, C]
AverageVelocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Interval:
  """Describes how the ends of intervals are sampled: two logit-normals, sorted.

  Attributes:
    mean: of the normals.
    std: of the normals.
    zero_share: share of examples with r = t, which learn the velocity itself.
  """

  mean: float = -0.4
  std: float = 1.0
  zero_share: float = 0.75

  @classmethod
  def scheduled(cls, progress: float) -> "Interval":
    """Returns EMF's intervals for text: longer, and closer to noise, as training proceeds from 0 to 1."""
    return cls(mean=-0.5 + progress, std=1.0 + progress, zero_share=0.75 - 0.5 * progress)


def sample_interval(
    normals: jax.Array, interval: Interval, uniforms: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Computes the ends of intervals.

  Args:
    normals: float32[B, 2], standard normal.
    interval: their distribution.
    uniforms: float32[B] in [0, 1); r = t where it is below zero_share. None sets r = t in the first
      int(B · zero_share) examples, as the official code does.

  Returns:
    (float32[B] t, float32[B] r ≤ t).
  """
  times = jax.nn.sigmoid(normals * interval.std + interval.mean)
  t, r = times.max(1), times.min(1)
  if uniforms is None:
    equal = np.arange(t.shape[0]) < int(t.shape[0] * interval.zero_share)
  else:
    equal = uniforms < interval.zero_share
  return t, jnp.where(equal, t, r)


def guided_velocity(
    velocity: jax.Array, unconditional: jax.Array, conditional: jax.Array | None, t: jax.Array, *,
    scale: float, mix: float, start: float = 0.0, end: float = 1.0
) -> jax.Array:
  """Computes the velocity with guidance that the network learns: ω v + (1 − ω − κ) u_∅ + κ u_y.

  Args:
    velocity: v = ε − x.
    unconditional: u(z, t, 0) with the condition dropped.
    conditional: u(z, t, 0) with the condition; unused for mix = 0.
    t: float32[B].
    scale: ω.
    mix: κ; the effective guidance is ω / (1 − κ).
    start: guidance applies for t in [start, end].
    end: see start.

  Returns:
    float32[B, h, w, C] without gradient.
  """
  guided = unconditional + scale * (velocity - unconditional)
  if mix:
    guided = scale * velocity + (1 - scale - mix) * unconditional + mix * conditional
  inside = ((t >= start) & (t <= end))[:, None, None, None]
  return jax.lax.stop_gradient(jnp.where(inside, guided, velocity))


def mean_flow_loss(
    average: AverageVelocity, noisy: jax.Array, t: jax.Array, r: jax.Array, velocity: jax.Array, *,
    power: float = 1.0, floor: float = 0.01
) -> tuple[jax.Array, jax.Array]:
  """Computes ℓ / sg((ℓ + c)^p) with ℓ = Σ (u − sg(v − (t − r) du/dt))².

  With power 1 the loss is about 1 whatever happens; the error ℓ tells how training goes.

  Args:
    average: the network.
    noisy: float32[B, h, w, C] z = (1 − t) x + t ε.
    t: float32[B].
    r: float32[B] ≤ t.
    velocity: float32[B, h, w, C], ε − x or a guided velocity.
    power: p.
    floor: c; it belongs to sums over h·w·C entries.

  Returns:
    (float32[B] loss, float32[B] error ℓ).
  """
  chex.assert_equal_shape([noisy, velocity])
  chex.assert_shape([t, r], noisy.shape[:1])
  velocity = jax.lax.stop_gradient(velocity)
  along = lambda z, t, r: average(z, t, t - r)
  u, slope = jax.jvp(along, (noisy, t, r), (velocity, jnp.ones_like(t), jnp.zeros_like(r)))
  length = jnp.clip(t - r, 0, 1)[:, None, None, None]
  error = jnp.square(u - jax.lax.stop_gradient(velocity - length * slope)).sum((1, 2, 3))
  return error / jax.lax.stop_gradient((error + floor)**power), error
