"""Flow-GRPO's loss equals the official one, with gradients (tests/golden/post.npz, float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses import recorded
from unilip_jax.losses import grpo
from unilip_jax.ops import stochastic_steps

_RUN = recorded.arrays("flow_grpo")
_SETTINGS = recorded.cases("flow_grpo_cases")
_CLOSE = dict(rtol=1e-9, atol=1e-12)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def guided(params, latents, sigma):
  """Guided velocity; the term without the prompt gets no gradient."""
  negative = jax.lax.stop_gradient(recorded.network(params, latents, [sigma], _RUN["null"]))
  positive = recorded.network(params, latents, [sigma], _RUN["context"])
  return negative + _SETTINGS["guidance"] * (positive - negative)


def step(params, index, latents):
  sigmas = jnp.asarray(_RUN["sigmas"])
  return stochastic_steps.step(
      guided(params, latents, sigmas[index]), latents, sigmas[index], sigmas[index + 1],
      noise_level=_SETTINGS["noise_level"], second=sigmas[1])


def _loss(params, case):
  at = case["step"]
  taken = step(params, at, jnp.asarray(_RUN["latents"][at]))
  log_prob = taken.log_prob(jnp.asarray(_RUN["latents"][at + 1]))
  limit = _SETTINGS["adv_clip_max"]
  advantage = jnp.clip(jnp.asarray(_RUN["advantage"]), -limit, limit)
  terms, ratio = grpo.policy_terms(
      log_prob, jnp.asarray(_RUN["log_prob_old"][:, at]), advantage, clip_range=case["clip_range"])
  reference = step(recorded.weights("flow_grpo", "reference_"), at, jnp.asarray(_RUN["latents"][at]))
  kl = grpo.divergence(taken, reference.mean).mean()
  return terms.mean() + case["kl"] * kl, (terms.mean(), ratio, log_prob, kl, taken.mean)


@pytest.mark.parametrize("name", _SETTINGS["cases"])
def test_losses_and_gradients_equal_the_official_ones(name):
  case = _SETTINGS["cases"][name]
  (loss, (policy, ratio, log_prob, kl, mean)), gradient = jax.value_and_grad(_loss, has_aux=True)(
      recorded.weights("flow_grpo", "current_"), case)
  for value, key in ((mean, "mean"), (log_prob, "log_prob"), (ratio, "ratio"), (policy, "policy_loss"),
                     (loss, "loss"), (gradient["W1"], "grad_W1")):
    np.testing.assert_allclose(value, _RUN[f"{name}/{key}"], err_msg=key, **_CLOSE)
  if case["kl"]:
    np.testing.assert_allclose(kl, _RUN[f"{name}/kl"], **_CLOSE)


def test_the_ratio_is_exactly_one_on_the_rollouts_own_weights():
  behaviour = recorded.weights("flow_grpo", "behaviour_")
  taken = step(behaviour, 3, jnp.asarray(_RUN["latents"][3]))
  log_prob = taken.log_prob(taken.next(jnp.asarray(_RUN["noises"][3])))
  again = step(behaviour, 3, jnp.asarray(_RUN["latents"][3]))
  advantage = jnp.asarray(_RUN["advantage"])
  terms, ratio = grpo.policy_terms(
      again.log_prob(taken.next(jnp.asarray(_RUN["noises"][3]))), log_prob, advantage, clip_range=1e-4)
  np.testing.assert_array_equal(ratio, 1)
  np.testing.assert_array_equal(terms, -advantage)
