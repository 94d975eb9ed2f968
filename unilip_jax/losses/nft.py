"""DiffusionNFT: reward post-training of a flow model by its forward process (arXiv 2509.16117).

Samples, prompts and rewards are all that a rollout leaves: no likelihoods and no stochastic solver. The
loss pulls the velocity towards good samples and pushes it away from bad ones, next to the old policy.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

_SMALLEST_WEIGHT = 1e-5


class Terms(NamedTuple):
  """Holds the terms of the loss.

  Attributes:
    policy: float32[B], without the KL term.
    positive: float32[B], self-normalised error of the positive branch.
    negative: float32[B], that of the negative branch.
  """

  policy: jax.Array
  positive: jax.Array
  negative: jax.Array


def _per_example(values: jax.Array) -> jax.Array:
  return values.mean(tuple(range(1, values.ndim)))


def _normalised_error(prediction: jax.Array, latents: jax.Array) -> jax.Array:
  """Divides the squared error by the mean absolute one, which gets no gradient: float32[B]."""
  error = prediction - latents
  weight = jnp.maximum(_per_example(jnp.abs(error)), _SMALLEST_WEIGHT)
  return _per_example(jnp.square(error)) / jax.lax.stop_gradient(weight)


def policy_terms(
    velocity: jax.Array, old: jax.Array, noisy: jax.Array, sigma: jax.Array, latents: jax.Array,
    optimality: jax.Array, *, beta: float = 1.0, clip: float = 5.0
) -> Terms:
  """Computes clip/β · [r L⁺ + (1 − r) L⁻] of each sample.

  The branches are v⁺ = β v + (1 − β) v_old and v⁻ = (1 + β) v_old − β v; L± is the error of the clean
  latents they predict. At v = v_old the gradient is the clipped advantage times that of the normalised
  flow-matching error.

  Args:
    velocity: float32[B, h, w, C], the trained network's v(z, σ) without guidance.
    old: the same of the old policy; gets no gradient.
    noisy: z = (1 − σ) x + σ ε.
    sigma: float32[B].
    latents: x, the samples of the rollout.
    optimality: float32[B] r in [0, 1] (advantages.optimality).
    beta: inverse strength: 1 never passes the sample, 0.1 goes ten times as far.
    clip: that of the advantages.

  Returns:
    terms of each sample.
  """
  chex.assert_equal_shape([velocity, old, noisy, latents])
  chex.assert_shape([sigma, optimality], latents.shape[:1])
  old = jax.lax.stop_gradient(old)
  sigma = sigma[:, None, None, None]
  clean = lambda v: noisy - sigma * v
  positive = _normalised_error(clean(beta * velocity + (1 - beta) * old), latents)
  negative = _normalised_error(clean((1 + beta) * old - beta * velocity), latents)
  policy = clip / beta * (optimality * positive + (1 - optimality) * negative)
  return Terms(policy, positive, negative)


def divergence(velocity: jax.Array, reference: jax.Array) -> jax.Array:
  """Computes the mean squared distance to the reference network, which gets no gradient: float32[B]."""
  return _per_example(jnp.square(velocity - jax.lax.stop_gradient(reference)))


def masked_mean(values: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Computes the mean over the samples that `mask` (bool[B]) keeps; 0 if it keeps none."""
  if mask is None:
    return values.mean()
  weights = mask.astype(values.dtype)
  return (values * weights).sum() / jnp.maximum(weights.sum(), 1)
