"""DiffusionNFT's loss equals the official one, with gradients (tests/golden/post.npz, float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses import recorded
from unilip_jax.losses import advantages, nft

_RUN = recorded.arrays("nft_loss")
_CASES = recorded.cases("nft_cases")
_CLOSE = dict(rtol=1e-10, atol=1e-13)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _terms(velocity, old, case):
  sigma = _RUN["sigma"]
  wide = sigma[:, None, None, None]
  noisy = (1 - wide) * _RUN["x0"] + wide * _RUN["noise"]
  r = advantages.optimality(_RUN["advantage"], clip=case["adv_clip_max"], mode=case["adv_mode"])
  return nft.policy_terms(velocity, old, noisy, sigma, jnp.asarray(_RUN["x0"]), jnp.asarray(r),
                          beta=case["beta"], clip=case["adv_clip_max"])


def _velocity(params):
  wide = _RUN["sigma"][:, None, None, None]
  noisy = (1 - wide) * _RUN["x0"] + wide * _RUN["noise"]
  return recorded.network(params, noisy, [_RUN["sigma"]], _RUN["context"])


def _networks(case):
  old = recorded.weights("nft_loss", "old_")
  new = old if case["new_weights_are_old"] else recorded.weights("nft_loss", "new_")
  return new, old, recorded.weights("nft_loss", "ref_")


def _loss(params, old, reference, case, mask=None):
  velocity = _velocity(params)
  terms = _terms(velocity, _velocity(old), case)
  kl = nft.masked_mean(nft.divergence(velocity, _velocity(reference)), mask)
  return nft.masked_mean(terms.policy, mask) + case["kl"] * kl, (terms, kl)


@pytest.mark.parametrize("name", _CASES)
def test_losses_and_gradients_equal_the_official_ones(name):
  case = _CASES[name]
  new, old, reference = _networks(case)
  (loss, (terms, kl)), gradient = jax.value_and_grad(_loss, has_aux=True)(new, old, reference, case)
  np.testing.assert_allclose(terms.positive, _RUN[f"{name}/positive_loss"], **_CLOSE)
  np.testing.assert_allclose(terms.negative, _RUN[f"{name}/negative_loss"], **_CLOSE)
  np.testing.assert_allclose(terms.policy.mean(), _RUN[f"{name}/policy_loss"], **_CLOSE)
  np.testing.assert_allclose(kl, _RUN[f"{name}/kl"], **_CLOSE)
  np.testing.assert_allclose(loss, _RUN[f"{name}/loss"], **_CLOSE)
  np.testing.assert_allclose(gradient["W1"], _RUN[f"{name}/grad_W1"], **_CLOSE)


def test_at_the_old_policy_the_gradient_is_the_advantage_times_that_of_the_normalised_flow_error():
  case = _CASES["onpolicy"]
  old = _velocity(recorded.weights("nft_loss", "old_"))
  gradient = jax.grad(lambda v: _terms(v, old, case).policy.sum())(old)
  sigma = _RUN["sigma"][:, None, None, None]
  error = sigma * (old - (_RUN["noise"] - _RUN["x0"]))
  normalised = jnp.square(error).mean((1, 2, 3)) / jnp.abs(error).mean((1, 2, 3))

  def flow(v):
    error = sigma * (v - (_RUN["noise"] - _RUN["x0"]))
    weight = jax.lax.stop_gradient(jnp.abs(error).mean((1, 2, 3)))
    return (jnp.square(error).mean((1, 2, 3)) / weight).sum()

  np.testing.assert_allclose(flow(old), normalised.sum(), **_CLOSE)
  clipped = np.clip(_RUN["advantage"], -5, 5)[:, None, None, None]
  np.testing.assert_allclose(gradient, clipped * jax.grad(flow)(old), rtol=1e-9, atol=1e-13)


def test_without_an_advantage_nothing_moves():
  old = _velocity(recorded.weights("nft_loss", "old_"))
  wide = _RUN["sigma"][:, None, None, None]
  noisy = (1 - wide) * _RUN["x0"] + wide * _RUN["noise"]
  half = jnp.full(6, 0.5)
  gradient = jax.grad(lambda v: nft.policy_terms(
      v, old, noisy, _RUN["sigma"], jnp.asarray(_RUN["x0"]), half).policy.sum())(old)
  np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_masked_samples_do_not_count_as_officially():
  run = recorded.arrays("nft_masked")
  case = dict(beta=1.0, kl=1e-4, adv_mode="all", adv_clip_max=5, new_weights_are_old=False)
  new, old, reference = _networks(case)
  (loss, (terms, kl)), gradient = jax.value_and_grad(_loss, has_aux=True)(
      new, old, reference, case, jnp.asarray(run["mask"]))
  np.testing.assert_allclose(kl, run["kl"], **_CLOSE)
  np.testing.assert_allclose(nft.masked_mean(terms.policy, run["mask"]), run["policy_loss"], **_CLOSE)
  np.testing.assert_allclose(loss, run["loss"], **_CLOSE)
  np.testing.assert_allclose(gradient["W1"], run["grad_W1"], **_CLOSE)


def test_a_batch_without_valid_samples_has_no_loss():
  assert nft.masked_mean(jnp.array([1.0, 2.0]), jnp.zeros(2, bool)) == 0
