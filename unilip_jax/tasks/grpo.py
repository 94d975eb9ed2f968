"""Flow-GRPO (arXiv 2505.05470) on a window of stochastic steps: a clipped policy gradient.

A rollout takes Euler steps, and stochastic ones in a window of one to three in the noisy half of the
table, whose place each rollout samples. Updates train on the window alone, as later versions of Flow-GRPO
do. The old policy stays as it is during the updates of a rollout: its log-probabilities are computed again
in every update, by the code that computes those of the trained network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from unilip_jax.losses import grpo
from unilip_jax.ops import flow_schedules, seeds, stochastic_steps
from unilip_jax.tasks import reward

_WINDOW, _NOISE = 2, 3  # purposes of a rollout's randomness


class Grpo(reward.Reward):
  """Keeps the latents before and after each step of the window."""

  signal = "advantage"

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; allocates no array.

    Raises:
      ValueError: for settings that exclude each other.
    """
    super().__init__(config)
    settings = config.reward
    if settings.window > settings.steps // 2:
      raise ValueError(f"reward.window={settings.window} does not fit into the noisy half of "
                       f"reward.steps={settings.steps}")
    if settings.solver != "euler":
      raise ValueError("grpo needs reward.solver='euler': the dpm table starts below the noise level 1, "
                       "where stochastic steps leave the data")

  def sample_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    window, group = self.config.reward.window, self.group_size
    return {
        "trajectory": jax.ShapeDtypeStruct(
            (size, group, window + 1, *self.latent_shape(1)[1:]), np.float32),
        "start": jax.ShapeDtypeStruct((size, group), np.int32)}

  def sample(
      self, velocity: reward.Velocity, noise: jax.Array, seed: jax.Array, index: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    settings, key = self.config.reward, seeds.key(seed)
    sigmas = jnp.asarray(self.table.sigmas)
    start = jax.random.randint(
        jax.random.fold_in(key, _WINDOW), (), 0, settings.steps // 2 - settings.window + 1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, _NOISE), index)

    def step(latents, number):
      sigma, following = sigmas[number], sigmas[number + 1]
      v = velocity(latents, flow_schedules.TRAIN_STEPS * sigma)
      fresh = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), latents.shape[1:]))(keys)
      stochastic = (number >= start) & (number < start + settings.window)
      new = jnp.where(stochastic, self._step(v, latents, sigma, following).next(fresh),
                      latents + (following - sigma) * v)
      return new, latents

    last, before = jax.lax.scan(step, noise, jnp.arange(settings.steps))
    window = jax.lax.dynamic_slice_in_dim(before, start, settings.window + 1)
    return last, {"trajectory": jnp.swapaxes(window, 0, 1),
                  "start": jnp.full(noise.shape[:1], start, jnp.int32)}

  def _step(self, v, latents, sigma, following) -> stochastic_steps.Step:
    settings = self.config.reward
    return stochastic_steps.step(
        v, latents, sigma, following, noise_level=settings.noise_level, second=self.table.sigmas[1],
        kind=settings.step_kind)

  def learning_signal(self, advantages: np.ndarray) -> dict[str, np.ndarray]:
    clip = self.config.reward.adv_clip
    return {self.signal: np.clip(advantages, -clip, clip).astype(np.float32)}

  def prepare_part(self, part: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    del key  # an update repeats the rollout's steps
    return part

  def policy_losses(
      self, networks: Mapping[str, Any], parts: Sequence[Mapping[str, jax.Array]]
  ) -> list[dict[str, jax.Array]]:
    settings, window = self.config.reward, self.config.reward.window
    sigmas = jnp.asarray(self.table.sigmas)
    merged = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])  # [n, K, W, ...] -> [n, K·W, ...]
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    noisy, numbers = [], []
    for p in parts:
      noisy.append(merged(p["trajectory"][:, :, :-1]))
      numbers.append(merged(p["start"][..., None] + jnp.arange(window)[None, None]))
    times = [flow_schedules.TRAIN_STEPS * sigmas[n] for n in numbers]
    velocities = {name: self.velocities(params, parts, noisy, times) for name, params in networks.items()}
    out = []
    for i, p in enumerate(parts):
      number, z, following = flat(numbers[i]), flat(noisy[i]), flat(merged(p["trajectory"][:, :, 1:]))
      rows = (z, following, sigmas[number], sigmas[number + 1])
      of = {name: self._distributions(flat(v[i]), *rows) for name, v in velocities.items()}
      advantage = flat(merged(jnp.broadcast_to(p[self.signal][..., None], (*p["start"].shape, window))))
      policy, ratio = grpo.policy_terms(
          of["trained"][0], jax.lax.stop_gradient(of["old"][0]), advantage, clip_range=settings.clip_range)
      values = {"policy_loss": policy, "ratio": ratio, "ratio_deviation": jnp.abs(ratio - 1)}
      if "reference" in networks:
        values["kl"] = self._divergences(flat(velocities["trained"][i]), of["reference"][1], *rows)
      out.append({name: x.reshape(numbers[i].shape).mean(1) for name, x in values.items()})
    return out

  def _distributions(self, v, latents, following, sigma, next_sigma) -> tuple[jax.Array, jax.Array]:
    """Computes (log-probabilities float32[B] of `following`, means) of one step for each row."""
    def one(v, z, after, s, n):
      distribution = self._step(v[None], z[None], s, n)
      return distribution.log_prob(after[None])[0], distribution.mean[0]

    return jax.vmap(one)(v, latents, following, sigma, next_sigma)

  def _divergences(self, v, reference, latents, following, sigma, next_sigma) -> jax.Array:
    """Computes grpo.divergence to the means `reference` for each row: float32[B]."""
    del following
    return jax.vmap(lambda v, r, z, s, n: grpo.divergence(self._step(v[None], z[None], s, n), r[None])[0])(
        v, reference, latents, sigma, next_sigma)
