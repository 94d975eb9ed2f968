"""sCM's conversion and loss equal the official ones, with gradients (tests/golden/post.npz, float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses import recorded
from unilip_jax.losses import consistency

_RUN = recorded.arrays("scm")
_CLOSE = dict(rtol=1e-9, atol=1e-11)
_WARMUP = {"start": 0.0, "quarter": 0.25, "full": 1.0}


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _teacher(context):
  params = recorded.weights("scm", "teacher_")
  return consistency.trig_velocity(lambda z, sigma: recorded.network(params, z, [sigma], context))


def _student(params):
  guidance = 0.1 * _RUN["cfg"]
  return consistency.trig_velocity(
      lambda z, sigma: recorded.network(params, z, [sigma, guidance], _RUN["context"]))


def _start():
  t = jnp.asarray(_RUN["t"])
  wide = t[:, None, None, None]
  noisy = jnp.cos(wide) * _RUN["x0"] * 0.5 + jnp.sin(wide) * _RUN["z"] * 0.5
  slope = consistency.guided_teacher(
      _teacher(_RUN["null"])(noisy / 0.5, t), _teacher(_RUN["context"])(noisy / 0.5, t),
      jnp.asarray(_RUN["cfg"]))
  return t, noisy, slope


def test_times_are_sampled_as_officially():
  np.testing.assert_allclose(
      consistency.training_times(jnp.asarray(_RUN["normals"])), _RUN["t"], **_CLOSE)


def test_the_flow_network_is_a_trig_flow_network_without_training():
  t, noisy, slope = _start()
  np.testing.assert_allclose(noisy, _RUN["start/x_t"], **_CLOSE)
  np.testing.assert_allclose(slope, _RUN["start/dxt_dt"], **_CLOSE)
  student = _student(recorded.weights("scm", "student_"))
  np.testing.assert_allclose(student(noisy / 0.5, t), _RUN["start/F"], **_CLOSE)


@pytest.mark.parametrize("name", _WARMUP)
def test_losses_and_gradients_equal_the_official_ones(name):
  t, noisy, slope = _start()
  sigma = jnp.sin(t) / (jnp.sin(t) + jnp.cos(t))

  def loss(params, log_variance):
    terms = consistency.consistency_terms(
        _student(params), noisy, t, slope, log_variance[0] * sigma + log_variance[1], _WARMUP[name])
    return terms.loss.mean(), terms

  (value, terms), (gradient, of_variance) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
      recorded.weights("scm", "student_"), jnp.asarray(_RUN["logvar"]))
  np.testing.assert_allclose(value, _RUN[f"{name}/loss"], **_CLOSE)
  np.testing.assert_allclose(terms.error.mean(), _RUN[f"{name}/loss_without_weight"], **_CLOSE)
  np.testing.assert_allclose(gradient["W1"], _RUN[f"{name}/grad_W1"], **_CLOSE)
  np.testing.assert_allclose(of_variance, _RUN[f"{name}/grad_logvar"], **_CLOSE)
