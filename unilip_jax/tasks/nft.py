"""DiffusionNFT (arXiv 2509.16117): learns from samples and their advantages by the forward process."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from unilip_jax.losses import advantages as advantages_lib
from unilip_jax.losses import nft
from unilip_jax.ops import flow_schedules
from unilip_jax.sampling import images as image_sampling
from unilip_jax.tasks import reward

_TIMES, _NOISE = 0, 1  # purposes of an update's randomness, per sub-batch


class Nft(reward.Reward):
  """Keeps the clean latents of a rollout, and trains each at reward.times noise levels of its table."""

  signal = "optimality"

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; allocates no array.

    Raises:
      ValueError: for settings that exclude each other.
    """
    super().__init__(config)
    if config.reward.times > config.reward.steps:
      raise ValueError(f"reward.times={config.reward.times} is more than reward.steps="
                       f"{config.reward.steps}, whose noise levels they are")

  def sample_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"latents": jax.ShapeDtypeStruct(
        (size, self.group_size, *self.latent_shape(1)[1:]), np.float32)}

  def sample(
      self, velocity: reward.Velocity, noise: jax.Array, seed: jax.Array, index: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    del seed, index  # the solver is deterministic
    latents, _ = image_sampling.solve(velocity, noise, self.table)
    return latents, {"latents": latents}

  def learning_signal(self, advantages: np.ndarray) -> dict[str, np.ndarray]:
    settings = self.config.reward
    return {self.signal: advantages_lib.optimality(
        advantages, clip=settings.adv_clip, mode=settings.adv_mode).astype(np.float32)}

  def prepare_part(self, part: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Adds sigma float32[n, K, T], different ones of the table, and noise float32[n, K, T, h, w, C]."""
    settings, shape = self.config.reward, part["latents"].shape
    order = jnp.argsort(jax.random.uniform(
        jax.random.fold_in(key, _TIMES), (*shape[:2], settings.steps)), axis=-1)[..., :settings.times]
    noise = jax.random.normal(jax.random.fold_in(key, _NOISE), (*shape[:2], settings.times, *shape[2:]))
    return part | {"sigma": jnp.asarray(self.table.sigmas[:-1])[order], "noise": noise}

  def policy_losses(
      self, networks: Mapping[str, Any], parts: Sequence[Mapping[str, jax.Array]]
  ) -> list[dict[str, jax.Array]]:
    settings = self.config.reward
    merged = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])  # [n, K, T, ...] -> [n, K·T, ...]
    clean, noisy, sigmas = [], [], []
    for p in parts:
      sigma, latents = p["sigma"][..., None, None, None], p["latents"][:, :, None]
      noisy.append(merged((1 - sigma) * latents + sigma * p["noise"]))
      clean.append(merged(jnp.broadcast_to(latents, p["noise"].shape)))
      sigmas.append(merged(p["sigma"]))
    times = [flow_schedules.TRAIN_STEPS * s for s in sigmas]
    velocities = {name: self.velocities(params, parts, noisy, times) for name, params in networks.items()}
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    out = []
    for i, p in enumerate(parts):
      v, old = (flat(velocities[name][i]) for name in ("trained", "old"))
      good = merged(jnp.broadcast_to(p[self.signal][..., None], p["sigma"].shape))
      terms = nft.policy_terms(v, old, flat(noisy[i]), flat(sigmas[i]), flat(clean[i]), flat(good),
                               beta=settings.beta, clip=settings.adv_clip)
      values = {"policy_loss": terms.policy, "positive_loss": terms.positive,
                "negative_loss": terms.negative, "old_distance": nft.divergence(v, old)}
      if "reference" in networks:
        values["kl"] = nft.divergence(v, flat(velocities["reference"][i]))
      out.append({name: x.reshape(sigmas[i].shape).mean(1) for name, x in values.items()})
    return out
