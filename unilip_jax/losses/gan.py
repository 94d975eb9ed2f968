"""Adversarial losses: hinge, and LeCam regularisation with its averages as explicit state.

LeCam: arXiv 2104.03310. Means run over the global batch.
"""

import chex
import jax
import jax.numpy as jnp

Averages = dict[str, jax.Array]


def init_averages() -> Averages:
  """Returns running means of the discriminator's logits, 0 at first."""
  return {"real": jnp.zeros((), jnp.float32), "fake": jnp.zeros((), jnp.float32)}


def generator_loss(logits_fake: jax.Array) -> jax.Array:
  """Computes −mean(logits): float32[]."""
  return -logits_fake.astype(jnp.float32).mean()


def discriminator_loss(
    logits_real: jax.Array, logits_fake: jax.Array, averages: Averages, *,
    lecam_weight: float, decay: float
) -> tuple[jax.Array, tuple[Averages, dict[str, jax.Array]]]:
  """Computes the hinge loss ½(max(0, 1 − real) + max(0, 1 + fake)) plus LeCam.

  Args:
    logits_real: float[B, h, w, 1].
    logits_fake: float[B, h, w, 1].
    averages: of the calls before.
    lecam_weight: 0.001 officially.
    decay: of the averages, 0.999 officially.

  Returns:
    (float32[] loss, (new averages, metrics)).
  """
  chex.assert_rank([logits_real, logits_fake], 4)
  real, fake = logits_real.astype(jnp.float32), logits_fake.astype(jnp.float32)
  hinge = 0.5 * (jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + fake).mean())
  means = jax.tree.map(jnp.mean, {"real": real, "fake": fake})
  regulariser = lecam(means, averages)  # of the averages before this call
  averages = {
      "real": decay * averages["real"] + (1 - decay) * jax.lax.stop_gradient(means["real"]),
      "fake": decay * averages["fake"] + (1 - decay) * jax.lax.stop_gradient(means["fake"])}
  loss = hinge + lecam_weight * regulariser
  return loss, (averages, {
      "discriminator_loss": loss, "logits_real": means["real"], "logits_fake": means["fake"],
      "lecam_loss": lecam_weight * regulariser})


def lecam(means: Averages, averages: Averages) -> jax.Array:
  """Computes relu(mean real − average fake)² + relu(average real − mean fake)², of means over the batch."""
  return (jnp.square(jax.nn.relu(means["real"] - averages["fake"]))
          + jnp.square(jax.nn.relu(averages["real"] - means["fake"])))
