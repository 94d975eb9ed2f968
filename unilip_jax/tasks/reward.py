"""Reward training: the DiT learns from rewarded images of its own, without guidance and without targets.

A rollout samples K images of each prompt with the old policy. Rewards of these images give advantages
(training/rollouts.py). An update trains on latents, advantages and the prompts' conditions. The old policy
then follows the trained weights by its decay. Subclasses define the loss: nft.py and grpo.py.

LLM, vision tower, latent head and decoder never train: understanding stays bit-equal. As long as queries,
connector and projector are frozen too, the condition of a prompt is computed once, in the rollout, for all
its images, for updates, and for the trained, the old and the reference network.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from unilip_jax.common import tree
from unilip_jax.data import batch as batch_lib
from unilip_jax.ops import flow_schedules, seeds
from unilip_jax.ops import image as image_ops
from unilip_jax.optim import optimizer, update
from unilip_jax.optim import state as state_lib
from unilip_jax.sampling import images as image_sampling
from unilip_jax.sharding import activations
from unilip_jax.tasks import base, generate

_CONDITION = ("queries", "connector", "projector")
_TRAINABLE = ("dit", *_CONDITION)

# (latents float32[B, h, w, C], time float32[]) -> like latents
Velocity = Callable[[jax.Array, jax.Array], jax.Array]


class Reward(generate.Generate, base.LearnsFromRewards):
  """Defines rollouts, the old policy and the condition of updates; a subclass adds the loss.

  A subclass defines `sample`, `sample_spec`, `learning_signal`, `prepare_part` and `policy_losses`.
  """

  signal: str  # name of the entry of `learning_signal`

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; allocates no array.

    Raises:
      ValueError: for settings that exclude each other.
    """
    super().__init__(config)
    self.group_size = config.reward.group_size
    if self.to_dcae or config.data.latents_dir or config.data.example != "prompt":
      raise ValueError(f"stage {config.stage}: reward training takes prompts and no targets; set "
                       "generate.target='unilip', data.latents_dir='' and data.example='prompt'")
    trained = {path.split("/")[0] for path, columns in self.columns.items() if columns.train}
    if wrong := sorted(trained - set(_TRAINABLE)):
      raise ValueError(f"param_rules: reward training leaves {', '.join(wrong)} as they are; only "
                       f"{', '.join(_TRAINABLE)} may train")
    self._trains_condition = not trained.isdisjoint(_CONDITION)
    for name, size in batch_lib.part_sizes(config).items():
      if size % config.reward.sub_batches:
        raise ValueError(
            f"{size} prompts of {name} do not divide into reward.sub_batches={config.reward.sub_batches}")
    self.table = flow_schedules.solver(config.reward.solver, config.reward.steps)

  # ---- state

  def make_state(self, modules: Mapping[str, Any], seed: jax.Array) -> state_lib.TrainState:
    """Adds the old policy, and with reward.kl the reference network, both equal to the trained weights."""
    state = super().make_state(modules, seed)
    frozen = state.frozen
    if self.config.reward.kl:
      frozen = {**frozen, "reference": jax.tree.map(jnp.copy, state.params)}
    return state.replace(frozen=frozen, old=jax.tree.map(jnp.copy, state.params))

  def model_params(self, state: state_lib.TrainState) -> dict[str, Any]:
    """Returns the weights for evaluation and sampling: the EMA, or the parameters without one."""
    return _without_reference(super().model_params(state))

  def rollout_params(self, state: state_lib.TrainState) -> dict[str, Any]:
    """Returns the weights that sample rollouts: those of the old policy."""
    return _without_reference(tree.merge(state.old, state.frozen))

  # ---- batches

  def batch_spec(self, batch_size: int) -> dict[str, Any]:
    """Returns shapes and dtypes of an update's batch: sub-batches by name, each of n prompts.

    Each holds
      keep: bool[n], False for dropped groups.
      old_decay: float32[n], equal for all: of the old policy after this update; 1 keeps it.
      the entry of `learning_signal`: float32[n, K].
      the entries of `sample_spec`.
      context dtype[n, S, caption_width] and context_mask bool[n, S] of the prompts; or, where the condition
      trains, the prompts themselves: tokens, token_mask and, for edits, cond_image.
    """
    config, sizes = self.config, batch_lib.part_sizes(self.config)
    if sum(sizes.values()) != batch_size:
      raise ValueError(f"batch_size={batch_size} differs from the config's {config.batch_size}")
    lengths = {"t2i": config.text.t2i_length, "edit": config.text.edit_length}
    return {name: self._part_spec(name, size, lengths[name]) for name, size in sizes.items()}

  def _part_spec(self, name: str, size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    of = lambda shape, dtype: jax.ShapeDtypeStruct((size, *shape), dtype)
    spec = {"keep": of((), np.bool_), "old_decay": of((), np.float32),
            self.signal: of((self.group_size,), np.float32), **self.sample_spec(size)}
    if self._trains_condition:
      image_size = self.config.image_size if name == "edit" else None
      prompts = batch_lib.prompt_spec(size, length, 0, image_size)
      return spec | {k: v for k, v in prompts.items() if not k.startswith("_")}
    queries = self.model.dims.connector.queries
    states = {"both": length + queries, "queries": queries, "hidden": length}[self.model.condition]
    return spec | {
        "context": of((states, self.model.dims.dit.caption_width), self.model.dtype),
        "context_mask": of((states,), np.bool_)}

  @abc.abstractmethod
  def sample_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of what `sample` leaves of `size` prompts, each [size, K, ...]."""

  # ---- rollouts

  def rollout(
      self, params: base.Params, prompts: base.Batch, seed: jax.Array, first: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Samples K images of each prompt, see base.LearnsFromRewards.

    Image k of prompt i depends on (seed, first + i, k) alone.
    """
    count, shape = prompts["tokens"].shape[0], self.latent_shape(1)[1:]
    first = first * self.group_size
    noise = image_sampling.noise(seed, first, (count * self.group_size, *shape))
    by_group = lambda x: x.reshape(count, self.group_size, *x.shape[1:])
    rows = dict(prompts) | {
        "noise": by_group(noise), "index": by_group(first + jnp.arange(count * self.group_size))}
    parts = self.config.reward.sub_batches
    sample = lambda part: self._sample_groups(params, part, seed)
    if parts == 1:
      return sample(jax.tree.map(lambda x: activations.constrain(x, "batch"), rows))

    def split(x):  # as update.gradients: no prompt moves between devices
      x = jnp.swapaxes(x.reshape(count // parts, parts, *x.shape[1:]), 0, 1)
      return activations.constrain(x, "micro_batches")

    def join(x):
      return activations.constrain(jnp.swapaxes(x, 0, 1).reshape(count, *x.shape[2:]), "batch")

    return jax.tree.map(join, jax.lax.map(sample, jax.tree.map(split, rows)))

  def _sample_groups(self, params, rows, seed):
    flat = lambda x: activations.constrain(x.reshape(-1, *x.shape[2:]), "batch")
    noise, index = flat(rows["noise"]), flat(rows["index"])
    prompts = {k: x for k, x in rows.items() if k not in ("noise", "index")}
    context, mask = self.condition(params, prompts)
    cross_kv = self.model.cross_kv(params, context)

    def velocity(latents, time):
      time = jnp.broadcast_to(time, latents.shape[:1])
      return self.model.velocity(params, latents, time, cross_kv, mask).astype(jnp.float32)

    latents, entries = self.sample(velocity, noise, seed, index)
    images = image_ops.pixels_from_unit(
        self.model.decode(params, latents / self.latent_scale, (self.config.image_size,) * 2))
    by_group = lambda x: x.reshape(-1, self.group_size, *x.shape[1:])
    if not self._trains_condition:
      prompts = {"context": context.astype(self.model.dtype), "context_mask": mask}
    return by_group(images), {**jax.tree.map(by_group, entries), **prompts}

  @abc.abstractmethod
  def sample(
      self, velocity: Velocity, noise: jax.Array, seed: jax.Array, index: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Samples latents.

    Args:
      velocity: of the old policy.
      noise: float32[B, h, w, C], the first noise.
      seed: words of the rollout's seed.
      index: int32[B], the images' numbers in the rollout.

    Returns:
      (clean latents like `noise`, entries that updates need, B rows each).
    """

  # ---- updates

  def train_step(
      self, state: state_lib.TrainState, batch: base.Batch
  ) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
    """Makes one update, after which the old policy follows the trained weights.

    Args:
      state: donated by the caller.
      batch: see `batch_spec`.

    Returns:
      (the next state, {metric: float32[]}), see update.keep_if_not_finite.
    """
    old = update.gathered(self.config, state.old)
    new, metrics = super().train_step(state.replace(frozen={**state.frozen, "old": old}), batch)
    decay = next(iter(batch.values()))["old_decay"][0]
    keep = (decay == 1) | (metrics["finite"] == 0)
    old = jax.tree.map(lambda old, new: jnp.where(keep, old, new), state.old,
                       optimizer.ema_update(state.old, new.params, decay))
    return new.replace(frozen=state.frozen, old=old), metrics | {"old_decay": decay}

  def prepare(self, state: state_lib.TrainState, batch: base.Batch) -> dict[str, Any]:
    """Adds random numbers, and the weight of each group: 0 if dropped, 1 on average over the batch."""
    key = jax.random.fold_in(seeds.key(state.seed), state.step)
    kept = sum(part["keep"].sum() for part in batch.values())
    count = sum(part["keep"].size for part in batch.values())
    return {name: self.prepare_part(
        dict(part) | {"weight": part["keep"] * (count / jnp.maximum(kept, 1))},
        jax.random.fold_in(key, i)) for i, (name, part) in enumerate(batch.items())}

  @abc.abstractmethod
  def prepare_part(self, part: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Adds the random numbers of a sub-batch's loss."""

  @abc.abstractmethod
  def policy_losses(
      self, networks: Mapping[str, Any], parts: Sequence[Mapping[str, jax.Array]]
  ) -> list[dict[str, jax.Array]]:
    """Computes the terms of the loss of each sub-batch.

    Args:
      networks: weights of every module as "trained", "old", which gets no gradient, and with reward.kl
        "reference".
      parts: from `prepare_part`.

    Returns:
      for each sub-batch {metric: float32[n]}, with "policy_loss" and, with a reference, "kl".
    """

  def _loss(self, trained, frozen, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    frozen = dict(frozen)
    others = {name: frozen.pop(name) for name in ("old", "reference") if name in frozen}
    networks = {name: tree.merge(params, frozen) for name, params in {"trained": trained, **others}.items()}
    parts = list(batch.values())
    terms = self.policy_losses(networks, parts)
    count = sum(part["weight"].size for part in parts)
    mean = lambda name: sum((t[name] * p["weight"]).sum() for t, p in zip(terms, parts)) / count
    metrics = {name: mean(name) for name in terms[0]}
    metrics["loss"] = metrics["policy_loss"] + self.config.reward.kl * metrics.get("kl", 0.0)
    return metrics["loss"], metrics

  def velocities(
      self, params: base.Params, parts: Sequence[Mapping[str, jax.Array]], noisy: Sequence[jax.Array],
      times: Sequence[jax.Array]
  ) -> list[jax.Array]:
    """Runs the DiT over all sub-batches at once.

    Args:
      params: of the network.
      parts: sub-batches with their prompts or contexts.
      noisy: float32[n, m, h, w, C] of each.
      times: float32[n, m] of each, 0 … 1000; m is the same for all.

    Returns:
      float32[n, m, h, w, C] of each.
    """
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    joined = lambda values: activations.constrain(activations.join([flat(x) for x in values]), "batch")
    contexts, masks = zip(*[
        (p["context"], p["context_mask"]) if "context" in p else self.condition(params, p) for p in parts])
    out = self.model.velocity(params, joined(noisy), joined(times), contexts, masks).astype(jnp.float32)
    return [v.reshape(z.shape) for v, z in zip(
        activations.part(out, [z.shape[0] * z.shape[1] for z in noisy]), noisy)]

  def log_settings(self) -> None:
    """Logs settings that are not in the config."""
    super().log_settings()
    logging.info("rollouts: %d prompts × %d images for each of %d updates", self.config.batch_size,
                 self.group_size, self.config.reward.updates)


def _without_reference(params: Mapping[str, Any]) -> dict[str, Any]:
  return {name: module for name, module in params.items() if name != "reference"}
