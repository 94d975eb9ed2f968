"""Tables of flow matching and its solvers, in NumPy.

A noisy latent is z = (1 − σ) x + σ ε, the network predicts v = ε − x, and the clean latent follows as
x = z − σ v. Every solver here is one linear recurrence over those clean latents (`Solver`).
References: flow matching as SANA trains (arXiv 2410.10629), DPM-Solver++ (arXiv 2211.01095) as
diffusers' DPMSolverMultistepScheduler computes it with `use_flow_sigmas`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

TRAIN_STEPS = 1000
SHIFT = 3.0  # of sampling; training has none
SOLVERS = ("dpm", "euler")


@dataclasses.dataclass(frozen=True)
class Solver:
  """One row per step: x ← keep · x + fresh · x̂ + momentum · (x̂ − x̂ of the step before).

  Attributes:
    sigmas: float32[n+1], from almost 1 to 0.
    times: float32[n], the network's time input, 0 … 1000.
    keep: float32[n].
    fresh: float32[n].
    momentum: float32[n]; 0 at the first step.
  """

  sigmas: np.ndarray
  times: np.ndarray
  keep: np.ndarray
  fresh: np.ndarray
  momentum: np.ndarray

  def after(self, step: int) -> "Solver":
    """Returns the steps from `step` on, for latents at noise level sigmas[step] without earlier steps."""
    rest = {f.name: getattr(self, f.name)[step:] for f in dataclasses.fields(self)}
    rest["momentum"] = np.concatenate([np.zeros(1, np.float32), rest["momentum"][1:]])
    return Solver(**rest)


def solver(name: str, steps: int, shift: float = SHIFT) -> Solver:
  """Computes the table of a solver.

  Args:
    name: "dpm" (DPM-Solver++ 2M, midpoint) or "euler".
    steps: number of network evaluations.
    shift: moves steps towards noise; σ = shift·a / (1 + (shift − 1)·a).

  Raises:
    ValueError: for an unknown name or less than one step.
  """
  if name not in SOLVERS:
    raise ValueError(f"unknown solver {name!r}; choose {', '.join(SOLVERS)}")
  if not 1 <= steps <= TRAIN_STEPS:
    raise ValueError(f"steps={steps}: choose 1 to {TRAIN_STEPS}")
  if name == "euler":
    base = np.linspace(1.0, 1.0 / TRAIN_STEPS, steps)
  else:
    base = 1.0 - np.linspace(1.0, 1.0 / TRAIN_STEPS, steps + 1)[:0:-1]
  sigmas = np.append(shift * base / (1.0 + (shift - 1.0) * base), 0.0)
  times = TRAIN_STEPS * sigmas[:-1]
  keep = sigmas[1:] / sigmas[:-1]
  fresh, momentum = 1.0 - keep, np.zeros(steps)
  if name == "dpm":
    times = np.floor(times)
    with np.errstate(divide="ignore"):
      log_snr = np.log(1.0 - sigmas) - np.log(sigmas)
    h = np.diff(log_snr)
    # Second order in between; the first step has no history, the last ends at σ = 0.
    momentum[1:-1] = 0.5 * fresh[1:-1] * h[1:-1] / h[:-2]
  f32 = lambda x: x.astype(np.float32)
  return Solver(f32(sigmas), f32(times), f32(keep), f32(fresh), f32(momentum))


def training_times(normal: jax.Array, shift: float = 1.0) -> tuple[jax.Array, jax.Array]:
  """Times of training, logit-normal: u = sigmoid(normal) picks from 1000, 999, …, 1.

  Args:
    normal: float32[B], standard normal.
    shift: σ becomes shift·σ / (1 + (shift − 1)·σ), as in diffusers' FlowMatchEulerDiscreteScheduler;
      above 1 more of training is spent near pure noise.

  Returns:
    (float32[B] times 1 … 1000, float32[B] σ).
  """
  index = jnp.floor(TRAIN_STEPS * jax.nn.sigmoid(normal))
  times = TRAIN_STEPS - jnp.minimum(index, TRAIN_STEPS - 1)
  times = times * shift / (1.0 + (shift - 1.0) * times / TRAIN_STEPS)
  return times, times / TRAIN_STEPS
