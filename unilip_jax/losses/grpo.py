"""Flow-GRPO: a clipped policy gradient on stochastic steps of a flow (arXiv 2505.05470)."""

import chex
import jax
import jax.numpy as jnp

from unilip_jax.ops import stochastic_steps


def policy_terms(
    log_prob: jax.Array, recorded: jax.Array, advantage: jax.Array, *, clip_range: float
) -> tuple[jax.Array, jax.Array]:
  """Computes max(−A ρ, −A clip(ρ, 1 ± c)) with ρ = exp(log p − log p of the rollout).

  Args:
    log_prob: float32[B] of the trained network.
    recorded: float32[B] of the rollout.
    advantage: float32[B], clipped.
    clip_range: c, 1e-5 to 1e-4 since log-probabilities are means.

  Returns:
    (float32[B] terms, float32[B] ρ). With the rollout's own weights ρ is exactly 1.
  """
  chex.assert_equal_shape([log_prob, recorded, advantage])
  ratio = jnp.exp(log_prob - recorded)
  clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
  return jnp.maximum(-advantage * ratio, -advantage * clipped), ratio


def divergence(step: stochastic_steps.Step, reference: jax.Array) -> jax.Array:
  """Computes the KL divergence per entry to a step with the mean `reference`, float32[B].

  As in Flow-GRPO the variance is s² without the length of the step.
  """
  squared = jnp.square(step.mean - jax.lax.stop_gradient(reference)).mean((1, 2, 3))
  return squared / (2 * jnp.square(step.diffusion))
