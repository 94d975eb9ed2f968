"""Stochastic steps of a flow with their log-probabilities, for policy gradients.

References: Flow-GRPO (arXiv 2505.05470), whose stochastic differential equation has the marginals of the
flow; coefficients-preserving sampling (CPS) and Dance-GRPO's step as Flow-Factory has them. A step goes
from σ to σ' < σ; z, v and the normal noise are float32[B, h, w, C].
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

KINDS = ("flow", "cps", "dance")


@dataclasses.dataclass(frozen=True)
class Step:
  """Describes the distribution of the next latents: normal, with one standard deviation for all entries.

  Attributes:
    mean: float32[B, h, w, C].
    std: float32[], the scale of the noise.
    diffusion: float32[], s; `std` is s √|Δσ| for "flow" and "dance", s for "cps".
    kind: one of KINDS.
  """

  mean: jax.Array
  std: jax.Array
  diffusion: jax.Array
  kind: str

  def next(self, normal: jax.Array) -> jax.Array:
    """Samples the next latents from standard normal noise."""
    return self.mean + self.std * normal

  def log_prob(self, latents: jax.Array) -> jax.Array:
    """Computes the mean over all entries of their log-probability, float32[B].

    The mean instead of the sum is the reason for clip ranges of 1e-4 (Flow-GRPO). CPS leaves out the
    constants and the division by the variance.
    """
    squared = jnp.square(jax.lax.stop_gradient(latents) - self.mean)
    if self.kind == "cps":
      terms = -squared
    else:
      terms = (-squared / (2 * jnp.square(self.std)) - jnp.log(self.std)
               - 0.5 * math.log(2 * math.pi))
    return terms.mean((1, 2, 3))


def step(
    velocity: jax.Array, latents: jax.Array, sigma: jax.Array, following: jax.Array, *,
    noise_level: float, second: jax.Array, kind: str = "flow"
) -> Step:
  """Computes the distribution of the next latents.

  Args:
    velocity: v(z, σ), guided if sampling is.
    latents: z.
    sigma: float32[] σ.
    following: float32[] σ' < σ.
    noise_level: a; 0 is the deterministic Euler step.
    second: float32[], the second σ of the table. It replaces σ in 1 − σ where σ is 1, the first of the
      "euler" table. The "dpm" table starts at 0.9997, where this step would leave the data.
    kind: "flow" | "cps" | "dance".

  Raises:
    ValueError: for an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f"unknown kind {kind!r} of stochastic steps; choose {', '.join(KINDS)}")
  sigma, following = jnp.asarray(sigma), jnp.asarray(following)
  delta = following - sigma
  if kind == "cps":
    diffusion = following * math.sin(noise_level * math.pi / 2)
    clean, noise = latents - sigma * velocity, latents + (1 - sigma) * velocity
    mean = (1 - following) * clean + jnp.sqrt(jnp.square(following) - jnp.square(diffusion)) * noise
    return Step(mean, diffusion, diffusion, kind)
  if kind == "flow":
    diffusion = noise_level * jnp.sqrt(sigma / (1 - jnp.where(sigma == 1, second, sigma)))
  else:
    diffusion = jnp.full_like(sigma, noise_level)
  half = jnp.square(diffusion) / (2 * sigma)
  mean = latents * (1 + half * delta) + velocity * (1 + half * (1 - sigma)) * delta
  return Step(mean, diffusion * jnp.sqrt(-delta), diffusion, kind)
