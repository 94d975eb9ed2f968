"""Samples images from noise: classifier-free guidance, and a solver's table under lax.scan."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.models import sana, unilip
from unilip_jax.ops import flow_schedules, seeds
from unilip_jax.ops import image as image_ops


def noise(seed: int | np.ndarray | jax.Array, first: int, shape: tuple[int, ...]) -> jax.Array:
  """Samples the first noise; that of sample i depends on (seed, i) alone, not on the batch.

  Args:
    seed: of the call, or its words (ops/seeds.py).
    first: index of the first sample in its call.
    shape: [B, h, w, C].

  Returns:
    float32[B, h, w, C], standard normal.
  """
  key = seeds.key(seed)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(shape[0]))
  return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(keys)


def guided(
    velocity: Callable[..., jax.Array], context: sana.Context, mask: jax.Array, guidance: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Makes the guided velocity v = v₋ + g (v₊ − v₋), with both terms in one batch.

  Args:
    velocity: (latents, time, context, mask) -> like latents.
    context: [2B, S, C]: conditioning states of the negative prompts, then of the prompts; or any pytree
      that `velocity` takes instead.
    mask: bool[2B, S].
    guidance: g; 1 uses the prompt alone.

  Returns:
    (latents [B, h, w, C], time float32[]) -> float32[B, h, w, C].
  """
  def at(latents, time):
    both = jnp.concatenate([latents, latents])
    out = velocity(both, jnp.broadcast_to(time, both.shape[:1]), context, mask)
    negative, positive = jnp.split(out.astype(jnp.float32), 2)
    return negative + guidance * (positive - negative)

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
    negative: Mapping[str, jax.Array], pixels: jax.Array | None, start: jax.Array, *,
    image_slot: int, factor: float, image_size: int, steps: int, guidance: float,
    solver: str = "dpm"
) -> jax.Array:
  """Samples images from prompts.

  Args:
    model, params, positive, negative, pixels, image_slot, guidance: see `prompted`.
    start: float32[B, h, w, C], standard normal.
    factor: the DiT was trained on latents × factor.
    image_size: pixels per side of the result.
    steps: network evaluations.
    solver: see flow_schedules.solver.

  Returns:
    uint8[B, image_size, image_size, 3].
  """
  velocity = prompted(
      model, params, positive, negative, pixels, image_slot=image_slot, guidance=guidance)
  latents, _ = solve(velocity, start, flow_schedules.solver(solver, steps))
  return image_ops.pixels_from_unit(model.decode(params, latents / factor, image_size))


def prompted(
    model: unilip.Unilip, params: Mapping[str, Any], positive: Mapping[str, jax.Array],
    negative: Mapping[str, jax.Array], pixels: jax.Array | None, *, image_slot: int, guidance: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Makes the guided velocity of prompts; the LLM runs over the prompts here, once for all steps.

  Args:
    model: the networks.
    params: of every module; vision_tower and mlp1 only with images to edit.
    positive: tokens int32[B, L] and token_mask bool[B, L].
    negative: the same with dropped prompts; without images, one row for all prompts is enough.
    pixels: uint8[B, T, R, R, 3] images to edit, or None.
    image_slot: id of the token whose embeddings image features replace.
    guidance: 1 uses the prompt alone.

  Returns:
    (latents [B, h, w, C], time float32[]) -> float32[B, h, w, C], for `solve`.
  """
  both = {k: jnp.concatenate([negative[k], positive[k]]) for k in ("tokens", "token_mask")}
  features = model.pixel_features(params, pixels)
  if features is not None:
    features = jnp.concatenate([features, features])
  states, cache = model.prompt(params, both["tokens"], both["token_mask"], image_slot, features)
  context, mask = model.context(params, states, cache)
  cross_kv = model.cross_kv(params, context)
  count = positive["tokens"].shape[0]
  if mask.shape[0] < 2 * count:  # one negative prompt for all
    rows = jnp.concatenate([jnp.zeros((count,), jnp.int32), 1 + jnp.arange(count)])
    cross_kv, mask = jax.tree.map(lambda x: x[:, rows], cross_kv), mask[rows]
  return guided(lambda *args: model.velocity(params, *args), cross_kv, mask, guidance)
