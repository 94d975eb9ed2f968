"""MeanFlow's and EMF's losses equal the official ones, with gradients (tests/golden/post.npz, float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses import recorded
from unilip_jax.losses import mean_flow

_RUN, _EMF = recorded.arrays("meanflow"), recorded.arrays("emf")
_CASES = recorded.cases("meanflow_cases")
_CLOSE = dict(rtol=1e-9, atol=1e-12)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _average(params, labels):
  context = jnp.asarray(_RUN["context_table"])[labels]
  return lambda z, t, h: recorded.network(params, z, [t, h], context)


def _guided(case, t, noisy, velocity):
  """The velocity that the network learns, before dropped conditions take the plain one."""
  params, zero = recorded.weights("meanflow"), jnp.zeros_like(t)
  null = jnp.full(t.shape, len(_RUN["context_table"]) - 1)
  if case["guidance_eq"] != "cfg":
    return velocity
  return mean_flow.guided_velocity(
      velocity, _average(params, null)(noisy, t, zero),
      _average(params, jnp.asarray(_RUN["labels"]))(noisy, t, zero), t, scale=case["omega"],
      mix=case["kappa"], start=case["t_start"], end=case["t_end"])


@pytest.mark.parametrize("name", _CASES)
def test_losses_and_gradients_equal_the_official_ones(name):
  case = _CASES[name]
  interval = mean_flow.Interval(case["P_mean"], case["P_std"], case["data_proportion"])
  t, r = mean_flow.sample_interval(
      jnp.asarray(np.stack([_RUN["normals_t"], _RUN["normals_r"]], 1)), interval)
  np.testing.assert_allclose(t, _RUN[f"{name}/t"], **_CLOSE)
  np.testing.assert_allclose(r, _RUN[f"{name}/r"], **_CLOSE)
  wide, x, noise = t[:, None, None, None], jnp.asarray(_RUN["x"]), jnp.asarray(_RUN["noise"])
  noisy, velocity = (1 - wide) * x + wide * noise, noise - x
  np.testing.assert_allclose(_guided(case, t, noisy, velocity), _RUN[f"{name}/v_guided"], **_CLOSE)
  average = lambda params: _average(params, _RUN[f"{name}/labels_used"])

  def loss(params):
    losses, error = mean_flow.mean_flow_loss(
        average(params), noisy, t, r, jnp.asarray(_RUN[f"{name}/v_used"]), power=case["norm_p"],
        floor=case["norm_eps"])
    return losses.mean(), error

  (value, error), gradient = jax.value_and_grad(loss, has_aux=True)(recorded.weights("meanflow"))
  np.testing.assert_allclose(error, _RUN[f"{name}/squared_error"], **_CLOSE)
  np.testing.assert_allclose(value, _RUN[f"{name}/loss"], **_CLOSE)
  np.testing.assert_allclose(gradient["W1"], _RUN[f"{name}/grad_W1"], **_CLOSE)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_schedule_for_text_equals_the_official_one(progress):
  t, r = mean_flow.sample_interval(
      jnp.asarray(_EMF["normals"]), mean_flow.Interval.scheduled(progress), jnp.asarray(_EMF["uniforms"]))
  np.testing.assert_allclose(t, _EMF[f"p{progress}/t"], **_CLOSE)
  np.testing.assert_allclose(r, _EMF[f"p{progress}/r"], **_CLOSE)
  x, noise, wide = jnp.asarray(_EMF["x"]), jnp.asarray(_EMF["noise"]), t[:, None, None, None]

  def loss(params):
    average = lambda z, t, h: recorded.network(params, z, [t, h], _EMF["context"])
    losses, _ = mean_flow.mean_flow_loss(
        average, (1 - wide) * x + wide * noise, t, r, noise - x, floor=1e-3)
    return losses.mean(), losses

  (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(recorded.weights("emf"))
  np.testing.assert_allclose(losses, _EMF[f"p{progress}/loss"], **_CLOSE)
  np.testing.assert_allclose(gradient["W1"], _EMF[f"p{progress}/grad_W1"], **_CLOSE)


def test_without_an_interval_the_loss_is_that_of_flow_matching():
  params, labels = recorded.weights("meanflow"), jnp.asarray(_RUN["labels"])
  t = jnp.linspace(0.1, 0.9, 8)
  noisy, velocity = jnp.asarray(_RUN["x"]), jnp.asarray(_RUN["noise"])
  average = _average(params, labels)
  _, error = mean_flow.mean_flow_loss(average, noisy, t, t, velocity)
  expected = jnp.square(average(noisy, t, 0 * t) - velocity).sum((1, 2, 3))
  np.testing.assert_allclose(error, expected, **_CLOSE)
