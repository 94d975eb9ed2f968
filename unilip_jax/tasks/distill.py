"""Distillation of a generation checkpoint to a few steps: MeanFlow (arXiv 2505.13447) or sCM.

The DiT trains; what conditions it is frozen, so that teacher and student read the same states. The teacher
is a frozen copy of the DiT that the run started from. Its guided velocity is the velocity of the target:
the student needs no guidance. Both methods take the derivative of the student along the teacher's path by
`jax.jvp` (losses/mean_flow.py, losses/consistency.py).

MeanFlow's network has a second time input, the length of a step. Its embedding starts as 0: the network
before the first update is the teacher, for steps of any length.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from unilip_jax.common import tree
from unilip_jax.data import text as text_lib
from unilip_jax.losses import consistency, mean_flow
from unilip_jax.models import time_embedding, unilip
from unilip_jax.ops import attention, flow_schedules, seeds
from unilip_jax.tasks import generate

_TEACHER, _WEIGHTING = "teacher", "loss_weighting"
_MORE_NOISE = 2  # purpose of a step's randomness, after those of flow_matching.py


class Distill(generate.Generate):
  """Defines networks, targets and loss of a few-step config."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; allocates no array.

    Raises:
      ValueError: for settings that exclude each other.
    """
    self._mean_flow = config.distill.method == "mean_flow"
    if config.generate.target == "dcae":
      raise ValueError("generate.target='dcae': a few-step network needs the decoder of its latents")
    super().__init__(config)
    self.model = dataclasses.replace(
        self.model, dims=dataclasses.replace(self.model.dims, few_step=config.distill.method),
        time_smoothing=config.distill.time_smoothing)
    self._dropped: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

  # ---- weights

  def model_spec(self) -> dict[str, Any]:
    """Returns the model.json of a run, which states that the DiT is a few-step network."""
    spec = super().model_spec()
    return spec | {"generate": spec["generate"] | {"few_step": self.config.distill.method}}

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Samples float32 weights of every network of this config, by module name."""
    if self._mean_flow:
      own = {unilip.INTERVAL: time_embedding.init_interval(
          jax.random.fold_in(key, 2), self.preset.dit.width)}
    else:
      own = {_WEIGHTING: {"kernel": jnp.zeros((time_embedding.FEATURES,)), "bias": jnp.zeros(())}}
    return self.fill_missing_modules(super().init_modules(key) | own)

  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the teacher with the DiT's weights, if none was loaded."""
    modules = super().fill_missing_modules(modules)
    if "dit" in modules and _TEACHER not in modules:
      modules[_TEACHER] = jax.tree.map(jnp.copy, modules["dit"])
    return modules

  # ---- the step

  def velocity(self, params, latents, time, contexts, masks) -> jax.Array:
    """Computes the student's velocity, which MeanFlow's network predicts for steps of length 0."""
    interval = jnp.zeros_like(time) if self._mean_flow else None
    return self.model.velocity(params, latents, time, contexts, masks, interval)

  def prepare(self, state, batch) -> dict[str, Any]:
    """Samples times and noise for the complete batch, by the progress of the run."""
    c = self.config.distill
    key = jax.random.fold_in(seeds.key(state.seed), state.step)
    progress = jnp.clip(state.step / max(1, self.config.total_steps), 0, 1)
    between = lambda ends: ends[0] + progress * (ends[1] - ends[0])
    interval = mean_flow.Interval(*(between(x) for x in (c.time_means, c.time_stds, c.zero_shares)))
    parts = super().prepare(state, batch)
    for i, part in enumerate(parts.values()):
      normal = part.pop("normal")
      if self._mean_flow:
        shape = normal.shape
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), _MORE_NOISE))
        normals = jnp.stack([normal.reshape(-1), jax.random.normal(keys[0], (normal.size,))], axis=1)
        t, r = mean_flow.sample_interval(normals, interval, jax.random.uniform(keys[1], (normal.size,)))
        part |= {"t": t.reshape(shape), "r": r.reshape(shape)}
      else:
        warmup = jnp.clip(state.step / max(1, c.tangent_warmup), 0, 1)
        part |= {"t": consistency.training_times(normal), "warmup": jnp.full(normal.shape, warmup)}
    return parts

  def _loss(self, trained, frozen, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    params, parts = tree.merge(trained, frozen), list(batch.values())
    with attention.forward_mode():
      losses, errors = (self._mean_flow_loss if self._mean_flow else self._consistency_loss)(params, parts)
    mean = lambda values: sum(v.sum() for v in values) / sum(v.size for v in values)
    losses, errors = self._by_part(losses, parts), self._by_part(errors, parts)
    terms = {f"{name}_error": value.mean() for name, value in zip(batch, errors)}
    terms |= {"loss": mean(losses), "error": mean(errors)}
    return terms["loss"], terms

  def _mean_flow_loss(self, params, parts) -> tuple[jax.Array, jax.Array]:
    """Returns MeanFlow's loss and mean squared error, float32[Σ B_i · n] each."""
    c = self.config.distill
    latents, noise, t, r = self._joined(params, parts, ("noise", "t", "r"))
    sigma = t[:, None, None, None]
    noisy = (1 - sigma) * latents + sigma * noise
    teacher, (contexts, masks) = self._networks(params, parts)
    units = flow_schedules.TRAIN_STEPS
    losses, errors = mean_flow.mean_flow_loss(
        lambda z, t, h: self.model.velocity(params, z, units * t, contexts, masks, h),
        noisy, t, r, teacher(noisy, t), power=c.power, floor=c.floor)
    return losses, errors / latents[0].size

  def _consistency_loss(self, params, parts) -> tuple[jax.Array, jax.Array]:
    """Returns sCM's loss and mean squared error, float32[Σ B_i · n] each."""
    latents, noise, t, warmup = self._joined(params, parts, ("noise", "t", "warmup"))
    sigma, angle = consistency.SIGMA_DATA, t[:, None, None, None]
    noisy = sigma * (jnp.cos(angle) * latents + jnp.sin(angle) * noise)
    teacher, (contexts, masks) = self._networks(params, parts)
    units = flow_schedules.TRAIN_STEPS
    student = lambda z, s: self.model.velocity(params, z, units * s, contexts, masks)
    slope = sigma * consistency.trig_velocity(teacher)(noisy / sigma, t)
    weighting = params[_WEIGHTING]
    level = units * jnp.sin(t) / (jnp.sin(t) + jnp.cos(t))
    log_variance = time_embedding.sinusoids(level) @ weighting["kernel"] + weighting["bias"]
    terms = consistency.consistency_terms(
        consistency.trig_velocity(student), noisy, t, jax.lax.stop_gradient(slope), log_variance,
        warmup[:, None, None, None])
    return terms.loss, terms.error

  def _networks(self, params, parts):
    """Returns (the teacher's guided velocity (z, σ) -> v, (contexts, masks) of the prompts)."""
    teacher = dict(params) | {"dit": params[_TEACHER]}
    conditions = tuple(zip(*[self.condition(params, p) for p in parts]))
    scale, units = self.config.distill.guidance, flow_schedules.TRAIN_STEPS
    at = lambda z, sigma, condition: self.model.velocity(teacher, z, units * sigma, *condition)
    if scale == 1:
      return lambda z, sigma: jax.lax.stop_gradient(at(z, sigma, conditions)), conditions
    dropped = tuple(zip(*[self._dropped_condition(params, p) for p in parts]))

    def guided(z, sigma):
      negative, positive = at(z, sigma, dropped), at(z, sigma, conditions)
      return jax.lax.stop_gradient(negative + scale * (positive - negative))

    return guided, conditions

  def _dropped_condition(self, params, part) -> tuple[jax.Array, jax.Array]:
    """Computes `condition` of a sub-batch with its prompts left out."""
    rows, editing = part["tokens"].shape[0], "cond_image" in part
    size = part["cond_image"].shape[2:4] if editing else None
    tokens, mask = self._dropped_prompt(size, part["tokens"].shape[1])
    # Without images all rows are equal: one runs through the LLM.
    full = lambda x, n: jnp.broadcast_to(jnp.asarray(x)[None], (n, *np.shape(x)))
    count = rows if editing else 1
    one = {"tokens": full(tokens, count), "token_mask": full(mask, count)}
    states, valid = self.condition(
        params, one | ({"cond_image": part["cond_image"]} if editing else {}))
    return (states, valid) if editing else (full(states[0], rows), full(valid[0], rows))

  def _dropped_prompt(
      self, size: tuple[int, int] | None, length: int) -> tuple[np.ndarray, np.ndarray]:
    if size not in self._dropped:
      text = text_lib.Text(self.config.text.tokenizer)
      self._dropped[size] = (
          text.generation(None, length) if size is None
          else text.editing(None, self.preset.tokenizer.image_tokens(size), length))
    return self._dropped[size]

  def log_settings(self) -> None:
    """Logs settings that are not in the config."""
    super().log_settings()
    logging.info("distillation by %s from a frozen copy of the DiT", self.config.distill.method)
