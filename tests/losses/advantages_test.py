"""Advantages and schedules equal those of the official code, recorded in tests/golden/post.npz."""

import numpy as np
import pytest

from tests.losses import recorded
from unilip_jax.losses import advantages

_EXACT = dict(rtol=1e-12, atol=1e-12)


@pytest.fixture
def run():
  return recorded.arrays("advantages")


@pytest.mark.parametrize(("global_std", "name"), [
    (True, "advantage_global_std"), (False, "advantage_group_std")])
def test_advantages_equal_the_official_ones(run, global_std, name):
  values = advantages.advantages(run["group"], run["rewards"], global_std=global_std)
  np.testing.assert_allclose(values, run[name], **_EXACT)


def test_sparse_rewards_are_mapped_as_officially(run):
  values = advantages.advantages(run["group"], run["rewards_sparse"])
  np.testing.assert_allclose(values, run["advantage_sparse_global_std"], **_EXACT)
  np.testing.assert_allclose(advantages.optimality(values), run["r_of_sparse"], **_EXACT)


@pytest.mark.parametrize("mode", advantages.MODES)
def test_every_mode_maps_advantages_as_officially(run, mode):
  np.testing.assert_allclose(
      advantages.optimality(run["map_advantages"], mode=mode), run[f"r_{mode}"], **_EXACT)


def test_solved_groups_and_uninformative_samples_are_the_official_ones(run):
  statistics = advantages.group_statistics(run["group"], run["rewards"])
  at = np.searchsorted(statistics.groups, run["group"])
  np.testing.assert_allclose(statistics.std[at], run["group_std_per_sample"], **_EXACT)
  np.testing.assert_allclose(statistics.mean[at], run["group_mean_per_sample"], **_EXACT)
  solved = advantages.solved_groups(statistics)
  np.testing.assert_array_equal(solved, run["banned"])
  assert not advantages.informative(run["group"], statistics)[np.isin(run["group"], solved)].any()


def test_equal_rewards_have_no_advantage():
  values = advantages.advantages(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 0.0, 1.0]))
  np.testing.assert_array_equal(values[:2], 0)
  np.testing.assert_array_equal(advantages.optimality(values)[:2], 0.5)


def test_a_reward_that_is_not_finite_is_refused_with_its_place():
  with pytest.raises(ValueError, match="1 of 3 rewards are not finite, the first at position 2"):
    advantages.advantages(np.zeros(3, int), np.array([1.0, 0.0, np.nan]))


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_old_policy_decays_as_officially(kind):
  run = recorded.cases("old_policy")
  values = [advantages.old_policy_decay(kind, step) for step in run["steps"]]
  np.testing.assert_allclose(values, run["decay"][str(kind)], **_EXACT)


def test_the_old_policy_follows_the_recorded_trace():
  trace = recorded.cases("old_policy")["trace"]
  old, new = np.array(trace["old_start"]), np.array(trace["new_start"])
  for step, expected in zip(trace["at_steps"], trace["old_after"]):
    decay = advantages.old_policy_decay(trace["type"], step)
    old = decay * old + (1 - decay) * new
    np.testing.assert_allclose(old, expected, **_EXACT)
    new = new + trace["new_plus_each_time"]


def test_unknown_choices_are_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="positive_only"):
    advantages.optimality(np.zeros(1), mode="positive")
  with pytest.raises(ValueError, match="0, 1 or 2"):
    advantages.old_policy_decay(3, 1)
