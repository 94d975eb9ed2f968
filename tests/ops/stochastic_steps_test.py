"""Stochastic steps and their log-probabilities equal the official ones (tests/golden/post.npz, float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses import recorded
from unilip_jax.ops import stochastic_steps

_RUN = recorded.arrays("flow_grpo")
_CLOSE = dict(rtol=1e-9, atol=1e-12)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _velocity(latents, sigma):
  params, scale = recorded.weights("flow_grpo", "behaviour_"), recorded.cases("flow_grpo_cases")["guidance"]
  negative = recorded.network(params, latents, [sigma], _RUN["null"])
  return negative + scale * (recorded.network(params, latents, [sigma], _RUN["context"]) - negative)


def test_a_rollout_equals_the_official_one_step_by_step():
  sigmas, latents = jnp.asarray(_RUN["sigmas"]), jnp.asarray(_RUN["latents"][0])
  for i in range(10):
    taken = stochastic_steps.step(
        _velocity(latents, sigmas[i]), latents, sigmas[i], sigmas[i + 1],
        noise_level=recorded.cases("flow_grpo_cases")["noise_level"], second=sigmas[1])
    np.testing.assert_allclose(taken.mean, _RUN["means"][i], **_CLOSE)
    latents = taken.next(jnp.asarray(_RUN["noises"][i]))
    np.testing.assert_allclose(latents, _RUN["latents"][i + 1], **_CLOSE)
    np.testing.assert_allclose(taken.log_prob(latents), _RUN["log_prob_old"][:, i], **_CLOSE)


@pytest.mark.parametrize("kind", ["cps", "dance"])
@pytest.mark.parametrize("index", [0, 2, 9])
def test_other_kinds_equal_the_official_ones(kind, index):
  run, sigmas = recorded.arrays("sde_kinds"), jnp.asarray(_RUN["sigmas"])
  latents = jnp.asarray(_RUN["latents"][index])
  taken = stochastic_steps.step(
      jnp.asarray(run[f"{kind}_{index}/v"]), latents, sigmas[index], sigmas[index + 1],
      noise_level=float(run["noise_level"]), second=sigmas[1], kind=kind)
  np.testing.assert_allclose(taken.mean, run[f"{kind}_{index}/mean"], **_CLOSE)
  np.testing.assert_allclose(
      taken.log_prob(jnp.asarray(run[f"{kind}_{index}/next"])), run[f"{kind}_{index}/log_prob"], **_CLOSE)


def test_without_noise_a_step_is_eulers():
  latents, velocity = jnp.ones((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 0.5)
  taken = stochastic_steps.step(
      velocity, latents, jnp.float64(0.8), jnp.float64(0.6), noise_level=0.0, second=jnp.float64(0.6))
  np.testing.assert_allclose(taken.mean, latents - 0.2 * velocity)
  np.testing.assert_array_equal(taken.std, 0)


def test_an_unknown_kind_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="flow, cps, dance"):
    stochastic_steps.step(jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1)), jnp.float64(1), jnp.float64(0.5),
                          noise_level=0.7, second=jnp.float64(0.5), kind="sde")
