"""Samplers of few-step networks: MeanFlow's average velocity and sCM's consistency function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.losses import consistency
from unilip_jax.ops import flow_schedules

METHODS = ("mean_flow", "consistency")  # of distillation, which makes few-step networks
STEPS = 4  # network evaluations where a user asks for no number
_NOISE_TIME = 1.5708  # π/2 as the official scheduler rounds it


def sample(
    method: str, network: Callable[..., jax.Array], start: jax.Array, steps: int,
    fresh: jax.Array | None) -> jax.Array:
  """Samples latents from a few-step network.

  Args:
    method: of METHODS.
    network: (latents, time float32[B] 0 … 1000, interval float32[B] 0 … 1 or None) -> like latents.
    start: float32[B, h, w, C], the noise.
    steps: network evaluations.
    fresh: float32[B, steps, h, w, C], standard normal, for method "consistency"; the last is not used.

  Returns:
    float32[B, h, w, C] clean latents.
  """
  units = flow_schedules.TRAIN_STEPS
  if method == "mean_flow":
    return mean_flow(lambda z, t, h: network(z, units * t, h), start, mean_flow_times(steps))
  student = consistency.trig_velocity(lambda z, sigma: network(z, units * sigma, None))
  return consistent(student, start, jnp.moveaxis(fresh, 1, 0), consistency_times(steps))


def mean_flow_times(steps: int) -> np.ndarray:
  """Returns the ends of the intervals of MeanFlow's sampler, float32[steps + 1] from 1 to 0.

  Raises:
    ValueError: for less than one step.
  """
  if steps < 1:
    raise ValueError(f"steps={steps}: choose 1 or more")
  return np.linspace(1.0, 0.0, steps + 1).astype(np.float32)


def mean_flow(
    average: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], start: jax.Array, times: np.ndarray
) -> jax.Array:
  """Samples with an average velocity: z_r = z_t − (t − r) u(z_t, t, t − r).

  Args:
    average: (z, t float32[B], h float32[B]) -> like z.
    start: float32[B, h, w, C], the noise.
    times: from `mean_flow_times`.

  Returns:
    float32[B, h, w, C] clean latents.
  """
  def step(z, ends):
    t, r = ends
    full = lambda x: jnp.broadcast_to(x, z.shape[:1])
    return z - (t - r) * average(z, full(t), full(t - r)), None

  return jax.lax.scan(step, start, (jnp.asarray(times[:-1]), jnp.asarray(times[1:])))[0]


def consistency_times(steps: int, middle: float | None = None) -> np.ndarray:
  """Returns the times of sCM's sampler, float32[steps + 1] from π/2 to 0.

  Args:
    steps: network evaluations.
    middle: the time between two steps (SANA-Sprint: 1.0, diffusers: 1.3); None: all are uniform.

  Raises:
    ValueError: for less than one step, or a middle of other than two steps.
  """
  if steps < 1:
    raise ValueError(f"steps={steps}: choose 1 or more")
  if middle is None:
    return np.linspace(_NOISE_TIME, 0.0, steps + 1).astype(np.float32)
  if steps != 2:
    raise ValueError(f"steps={steps}: a middle time belongs to 2 steps")
  return np.array([_NOISE_TIME, middle, 0.0], np.float32)


def consistent(
    student: consistency.TrigVelocity, start: jax.Array, noises: jax.Array, times: np.ndarray
) -> jax.Array:
  """Samples with a consistency function: denoises completely, then adds noise for the next time.

  Args:
    student: F of the network.
    start: float32[B, h, w, C], standard normal.
    noises: float32[steps, B, h, w, C], standard normal; noises[i] follows step i, the last is not used.
    times: from `consistency_times`.

  Returns:
    float32[B, h, w, C] clean latents, of standard deviation about 1.
  """
  sigma = consistency.SIGMA_DATA

  def step(noisy, row):
    t, following, noise = row
    full = jnp.broadcast_to(t, noisy.shape[:1])
    clean = jnp.cos(t) * noisy - jnp.sin(t) * sigma * student(noisy / sigma, full)
    return jnp.cos(following) * clean + jnp.sin(following) * sigma * noise, clean

  rows = (jnp.asarray(times[:-1]), jnp.asarray(times[1:]), noises)
  return jax.lax.scan(step, start * sigma, rows)[1][-1] / sigma
