"""Samples images from noise: classifier-free guidance, and a solver's table under lax.scan."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.models import sana, unilip
from unilip_jax.ops import flow_schedules, seeds
from unilip_jax.ops import image as image_ops
from unilip_jax.sampling import few_steps

_STEPS = 2**31 - 1  # folded into the key of noise of later steps; no call has as many samples


def noise(
    seed: int | np.ndarray | jax.Array, first: int | np.ndarray | jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """Samples the first noise; that of sample i depends on (seed, i) alone, not on the batch.

  Args:
    seed: of the call, or its words (ops/seeds.py).
    first: index of the first sample in its call, or int[B], that of each.
    shape: [B, h, w, C].

  Returns:
    float32[B, h, w, C], standard normal.
  """
  return _noise(seeds.key(seed), first, shape)


def _noise(key: jax.Array, first: Any, shape: tuple[int, ...]) -> jax.Array:
  indices = first if jnp.ndim(first) else first + jnp.arange(shape[0])
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
  return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(keys)


def noises(
    seed: int | np.ndarray | jax.Array, first: int | np.ndarray | jax.Array, shape: tuple[int, ...],
    steps: int) -> jax.Array:
  """Samples noise for every step, float32[B, steps, h, w, C]; other arguments as of `noise`."""
  key = jax.random.fold_in(seeds.key(seed), _STEPS)
  each = [_noise(jax.random.fold_in(key, step), first, shape) for step in range(steps)]
  return jnp.stack(each, axis=1)


@dataclasses.dataclass(frozen=True)
class Guidance:
  """Holds how strongly samples follow their prompts: v = v₋ + g (v₊ − v₋); all may be traced.

  Attributes:
    scale: g; 1 uses the prompt alone.
    rescale: φ in [0, 1], how far the standard deviation of the guided velocity is set to that of v₊, which
      keeps strong guidance from saturating colours (arXiv 2305.08891, section 3.4); None: not at all.
    interval: (low, high) noise levels σ between which guidance applies (arXiv 2404.07724); elsewhere the
      prompt is used alone, in half the time. None: everywhere.
  """

  scale: float | jax.Array
  rescale: float | jax.Array | None = None
  interval: tuple[float | jax.Array, float | jax.Array] | None = None


jax.tree_util.register_dataclass(Guidance, ["scale", "rescale", "interval"], [])


def guided(
    velocity: Callable[..., jax.Array], context: sana.Context, mask: jax.Array, guidance: Guidance
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Makes the guided velocity, with both terms in one batch.

  Args:
    velocity: (latents, time, context, mask) -> like latents.
    context: [2B, S, C]: conditioning states of the negative prompts, then of the prompts; or any pytree
      that `velocity` takes instead.
    mask: bool[2B, S].
    guidance: its interval is not used here.

  Returns:
    (latents [B, h, w, C], time float32[]) -> float32[B, h, w, C].
  """
  def at(latents, time):
    both = jnp.concatenate([latents, latents])
    out = velocity(both, jnp.broadcast_to(time, both.shape[:1]), context, mask)
    negative, positive = jnp.split(out.astype(jnp.float32), 2)
    result = negative + guidance.scale * (positive - negative)
    if guidance.rescale is None:
      return result
    deviation = lambda v: v.std((1, 2, 3), keepdims=True)
    ratio = deviation(positive) / jnp.maximum(deviation(result), 1e-12)
    return result * (1 + guidance.rescale * (ratio - 1))

  return at


def solve(
    velocity: Callable[[jax.Array, jax.Array], jax.Array], start: jax.Array,
    table: flow_schedules.Solver
) -> tuple[jax.Array, jax.Array]:
  """Runs a solver.

  Args:
    velocity: (latents, time float32[]) -> like latents.
    start: float32[B, h, w, C], the noise.
    table: from flow_schedules.solver.

  Returns:
    (float32[B, h, w, C] clean latents, float32[n, B, h, w, C] latents after every step).
  """
  def step(carry, row):
    x, before = carry
    time, sigma, keep, fresh, momentum = row
    clean = x - sigma * velocity(x, time)
    x = keep * x + fresh * clean + momentum * (clean - before)
    return (x, clean), x

  rows = (table.times, table.sigmas[:-1], table.keep, table.fresh, table.momentum)
  (last, _), trajectory = jax.lax.scan(
      step, (start, jnp.zeros_like(start)), jax.tree.map(jnp.asarray, rows))
  return last, trajectory


def sample(
    model: unilip.Unilip, params: Mapping[str, Any], positive: Mapping[str, jax.Array],
    negative: Mapping[str, jax.Array] | None, pixels: jax.Array | None, start: jax.Array, *,
    image_slot: int, factor: float, size: tuple[int, int], steps: int, guidance: Guidance,
    solver: str = "dpm", fresh: jax.Array | None = None
) -> jax.Array:
  """Samples images from prompts.

  Args:
    model, params, positive, negative, pixels, image_slot, guidance: see `prompted`.
    start: float32[B, h, w, C], standard normal.
    factor: the DiT was trained on latents × factor.
    size: (H, W) of the result, in pixels.
    steps: network evaluations.
    solver: see flow_schedules.solver; a few-step network has its own.
    fresh: float32[B, steps, h, w, C], standard normal, for few-step networks that add noise.

  Returns:
    uint8[B, H, W, 3].
  """
  if model.dims.few_step:
    at = conditional(model, params, positive, pixels, image_slot=image_slot)
    latents = few_steps.sample(model.dims.few_step, at, start, steps, fresh)
  else:
    velocity = prompted(
        model, params, positive, negative, pixels, image_slot=image_slot, guidance=guidance)
    latents, _ = solve(velocity, start, flow_schedules.solver(solver, steps))
  return image_ops.pixels_from_unit(model.decode(params, latents / factor, size))


def conditional(
    model: unilip.Unilip, params: Mapping[str, Any], prompts: Mapping[str, jax.Array],
    pixels: jax.Array | None, *, image_slot: int) -> Callable[..., jax.Array]:
  """Makes the network's output for prompts; arguments as of `prompted`.

  Returns:
    (latents [B, h, w, C], time float32[] or [B], interval or None) -> float32[B, h, w, C].
  """
  cross_kv, mask = _cross_kv(
      model, params, prompts, model.pixel_features(params, pixels), image_slot)
  return _network(model, params, cross_kv, mask)


def prompted(
    model: unilip.Unilip, params: Mapping[str, Any], positive: Mapping[str, jax.Array],
    negative: Mapping[str, jax.Array] | None, pixels: jax.Array | None, *, image_slot: int,
    guidance: Guidance
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Makes the guided velocity of prompts; the LLM runs over the prompts here, once for all steps.

  Args:
    model: the networks.
    params: of every module; vision_tower and mlp1 only with images to edit.
    positive: tokens int32[B, L] and token_mask bool[B, L].
    negative: the same with dropped prompts; without images, one row for all prompts is enough. None for
      guidance 1, which uses the prompts alone: half the work of a step.
    pixels: uint8[B, T, H, W, 3] images to edit, or None.
    image_slot: id of the token whose embeddings image features replace.
    guidance: its scale is not used without `negative`.

  Returns:
    (latents [B, h, w, C], time float32[]) -> float32[B, h, w, C], for `solve`.
  """
  if negative is None:
    return conditional(model, params, positive, pixels, image_slot=image_slot)
  both = {k: jnp.concatenate([negative[k], positive[k]]) for k in ("tokens", "token_mask")}
  features = model.pixel_features(params, pixels)
  if features is not None:
    features = jnp.concatenate([features, features])
  cross_kv, mask = _cross_kv(model, params, both, features, image_slot)
  count = positive["tokens"].shape[0]
  if mask.shape[0] < 2 * count:  # one negative prompt for all
    rows = jnp.concatenate([jnp.zeros((count,), jnp.int32), 1 + jnp.arange(count)])
    cross_kv, mask = jax.tree.map(lambda x: x[:, rows], cross_kv), mask[rows]
  both_at = guided(lambda *args: model.velocity(params, *args), cross_kv, mask, guidance)
  if guidance.interval is None:
    return both_at
  alone = _network(
      model, params, jax.tree.map(lambda x: x[:, -count:], cross_kv), mask[-count:])
  return within(guidance.interval, both_at, alone)


def within(
    interval: tuple[float | jax.Array, float | jax.Array], inside: Callable[..., jax.Array],
    outside: Callable[..., jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Makes a velocity that is `inside` at noise levels of an interval, ends included, and else `outside`."""
  low, high = (flow_schedules.TRAIN_STEPS * x for x in interval)
  return lambda latents, time: jax.lax.cond(
      (time >= low) & (time <= high), inside, outside, latents, time)


def _cross_kv(model, params, prompts, features, image_slot) -> tuple[sana.CrossKV, jax.Array]:
  """Runs the LLM over prompts; returns what the DiT attends to, and its mask."""
  states, cache = model.prompt(params, prompts["tokens"], prompts["token_mask"], image_slot, features)
  context, mask = model.context(params, states, cache)
  return model.cross_kv(params, context), mask


def _network(model, params, cross_kv, mask) -> Callable[..., jax.Array]:
  full = lambda x, latents: jnp.broadcast_to(x, latents.shape[:1])

  def at(latents, time, interval=None):
    interval = None if interval is None else full(interval, latents)
    return model.velocity(
        params, latents, full(time, latents), cross_kv, mask, interval).astype(jnp.float32)

  return at
