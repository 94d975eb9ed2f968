"""Solver and training tables equal the recorded ones of diffusers, for every recorded step count."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import parity
from unilip_jax.ops import flow_schedules
from unilip_jax.sampling import images

_REFERENCE = "golden schedulers"


@pytest.fixture(scope="module")
def recorded(golden):
  return np.load(golden / "schedulers.npz")


@pytest.mark.parametrize("steps", [4, 10, 20, 30, 50])
def test_dpm_tables(recorded, steps):
  table = flow_schedules.solver("dpm", steps)
  np.testing.assert_array_equal(table.times, recorded[f"dpm{steps}_timesteps"])
  parity.assert_parity("DPM-Solver++ tables", _REFERENCE, table.sigmas, recorded[f"dpm{steps}_sigmas"])


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_trajectory_on_a_known_field(recorded, steps):
  expected = recorded[f"dpm{steps}_known_field_traj"]
  table = flow_schedules.solver("dpm", steps)
  _, trajectory = images.solve(lambda x, t: 0.3 * x + t / 1000, expected[0][None], table)
  parity.assert_parity("DPM-Solver++ trajectory", _REFERENCE, trajectory[:, 0], expected[1:])


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 41])
def test_dpm_runs_as_diffusers_does(steps):
  """Step counts that were not recorded, against the library itself."""
  reference = diffusers.DPMSolverMultistepScheduler(
      prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_schedules.SHIFT)
  reference.set_timesteps(steps)
  start = np.random.default_rng(steps).standard_normal((1, 4, 4, 8)).astype(np.float32)
  x, expected = torch.tensor(start), []
  for time in reference.timesteps:
    x = reference.step(0.3 * x + time / 1000, time, x).prev_sample
    expected.append(x.numpy())
  table = flow_schedules.solver("dpm", steps)
  np.testing.assert_array_equal(table.times, reference.timesteps)
  _, trajectory = images.solve(lambda x, t: 0.3 * x + t / 1000, start, table)
  parity.assert_parity(
      "DPM-Solver++ trajectory", "diffusers DPMSolverMultistepScheduler", trajectory,
      np.stack(expected))


@pytest.mark.parametrize("step", [0, 3, 7])
def test_euler_goes_on_where_the_whole_schedule_was(step):
  velocity = lambda x, time: jnp.tanh(x) * (1 + time / flow_schedules.TRAIN_STEPS)
  start = jnp.linspace(-2, 2, 8).reshape(1, 2, 2, 2)
  table = flow_schedules.solver("euler", 8)
  final, trajectory = images.solve(velocity, start, table)
  reached = start if step == 0 else trajectory[step - 1]
  rest, _ = images.solve(velocity, reached, table.after(step))
  assert parity.relative_error(rest, final) < 1e-6


def test_the_first_step_that_is_left_has_no_history():
  table = flow_schedules.solver("dpm", 8)
  rest = table.after(3)
  assert rest.momentum[0] == 0
  np.testing.assert_array_equal(rest.momentum[1:], table.momentum[4:])
  np.testing.assert_array_equal(rest.sigmas, table.sigmas[3:])


def test_training_times(recorded):
  times, sigmas = flow_schedules.training_times(recorded["normal"])
  np.testing.assert_array_equal(times, recorded["train_timesteps"])
  np.testing.assert_allclose(sigmas, recorded["train_sigmas"], rtol=1e-6)


def test_training_times_stay_in_the_table():
  times, sigmas = flow_schedules.training_times(np.array([-100.0, 100.0], np.float32))
  np.testing.assert_array_equal(times, [1000, 1])
  np.testing.assert_allclose(sigmas, [1.0, 0.001])


def test_shifted_training_times_equal_diffusers():
  reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
  u = (np.arange(1000) + 0.5) / 1000  # one sample for every row of the table
  normal = (np.log(u) - np.log1p(-u)).astype(np.float32)
  times, sigmas = flow_schedules.training_times(normal, shift=3.0)
  np.testing.assert_allclose(times, reference.timesteps, rtol=1e-5)
  np.testing.assert_allclose(sigmas, reference.sigmas, rtol=1e-5)


@pytest.mark.parametrize("name", flow_schedules.SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_straight_path_is_followed_exactly(name, steps):
  rng = np.random.default_rng(steps)
  clean, start = rng.standard_normal((2, 1, 2, 2, 3)).astype(np.float32)
  table = flow_schedules.solver(name, steps)

  # The network's answer on the one path that ends in `clean`: σ is found again from the time's row.
  rows = iter(range(steps))
  with jax.disable_jit():
    x, _ = images.solve(lambda x, t: (x - clean) / table.sigmas[next(rows)], start, table)
  np.testing.assert_allclose(x, clean, rtol=1e-4, atol=1e-5)


def test_clear_errors():
  with pytest.raises(ValueError, match="choose dpm, euler"):
    flow_schedules.solver("ddim", 20)
  with pytest.raises(ValueError, match="steps=0"):
    flow_schedules.solver("dpm", 0)
