"""Going on from a noise level is what the solver does behind it."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import noise_levels
from tests import parity
from unilip_jax import schedules
from unilip_jax.sampling import images


@pytest.mark.parametrize("step", [0, 3, 7])
def test_euler_goes_on_where_the_whole_schedule_was(step):
  velocity = lambda x, time: jnp.tanh(x) * (1 + time / schedules.TRAIN_STEPS)
  start = jnp.linspace(-2, 2, 8).reshape(1, 2, 2, 2)
  table = schedules.solver("euler", 8)
  whole, trajectory = images.solve(velocity, start, table)
  reached = start if step == 0 else trajectory[step - 1]
  rest, _ = images.solve(velocity, reached, noise_levels._after(table, step))
  assert parity.relative_error(rest, whole) < 1e-6


def test_the_first_step_that_is_left_has_no_history():
  table = schedules.solver("dpm", 8)
  rest = noise_levels._after(table, 3)
  assert rest.momentum[0] == 0
  np.testing.assert_array_equal(rest.momentum[1:], table.momentum[4:])
  np.testing.assert_array_equal(rest.sigmas, table.sigmas[3:])


def test_examples_are_captions_of_their_scenes():
  for scene, caption in noise_levels._examples(5):
    assert len(scene.blocks) == 2
    assert caption.category == "colour_attribution"
    assert noise_levels.captions.fits(caption, scene)
