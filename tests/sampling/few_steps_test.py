"""Few-step samplers equal the official ones (tests/golden/post.npz, float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses import recorded
from unilip_jax.losses import consistency
from unilip_jax.sampling import few_steps

_CLOSE = dict(rtol=1e-6, atol=1e-6)  # the tables of times are float32


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_mean_flow_samples_as_officially(steps):
  run, params = recorded.arrays("meanflow"), recorded.weights("meanflow")
  recording = run[f"sample_{steps}"]
  context = jnp.asarray(run["context_table"])[run["labels"]]
  average = lambda z, t, h: recorded.network(params, z, [t, h], context)
  out = few_steps.mean_flow(average, jnp.asarray(recording[0]), few_steps.mean_flow_times(steps))
  np.testing.assert_allclose(out, recording[-1], **_CLOSE)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_guidance_on_an_average_velocity_samples_as_officially(steps):
  run, params = recorded.arrays("emf"), recorded.weights("emf")

  def average(z, t, h):
    negative, positive = (recorded.network(params, z, [t, h], run[k]) for k in ("null", "context"))
    return negative + 2.0 * (positive - negative)

  out = few_steps.mean_flow(average, jnp.asarray(run["noise"]), few_steps.mean_flow_times(steps))
  np.testing.assert_allclose(out, run[f"sample_{steps}"], **_CLOSE)


@pytest.mark.parametrize(("steps", "name", "middle"), [
    (1, "sample_1", None), (2, "sample_2", None), (2, "sample_2_via_1.0", 1.0), (4, "sample_4", None)])
def test_consistency_functions_sample_as_officially(steps, name, middle):
  run, params = recorded.arrays("scm"), recorded.weights("scm", "student_")
  guidance = np.full(6, 0.45)  # 0.1 × 4.5
  student = consistency.trig_velocity(
      lambda z, sigma: recorded.network(params, z, [sigma, guidance], run["context"]))
  times = few_steps.consistency_times(steps, middle)
  np.testing.assert_allclose(times, run[f"{name}/timesteps"], rtol=1e-6, atol=1e-6)
  out = few_steps.consistent(
      student, jnp.asarray(run["z"]), jnp.asarray(run["noises"][:steps]), times)
  np.testing.assert_allclose(out, run[f"{name}/clean"], rtol=1e-5, atol=1e-5)


def test_no_step_is_refused():
  with pytest.raises(ValueError, match="steps=0"):
    few_steps.mean_flow_times(0)
  with pytest.raises(ValueError, match="steps=0"):
    few_steps.consistency_times(0)
  with pytest.raises(ValueError, match="2 steps"):
    few_steps.consistency_times(4, 1.3)
