"""Rewards of a rollout become advantages; a reward that fails stops the run or drops its groups."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax.losses import advantages
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base
from unilip_jax.training import rollouts

_FAKES = "tests.rewards.fakes:"
_K, _N = 3, 8


class _Task(base.LearnsFromRewards):
  """Samples gray images: image k of prompt i has the level 20 · (first + i) + 5 · k."""

  def rollout_params(self, state):
    return state

  def rollout(self, params, prompts, seed, first):
    count = prompts["tokens"].shape[0]
    levels = 20 * (first + jnp.arange(count))[:, None] + 5 * jnp.arange(_K)[None]
    images = jnp.broadcast_to(levels[..., None, None, None], (count, _K, 4, 4, 3)).astype(jnp.uint8)
    return images, {"latents": levels.astype(jnp.float32) + params}

  def learning_signal(self, values):
    return {"advantage": values.astype(np.float32)}


_Task.__abstractmethods__ = frozenset()


class _Stream:
  """Prompts of two sub-batches."""

  position = 0

  def __next__(self):
    self.position += _N
    record = np.zeros(200, np.uint8)
    content = json.dumps({"prompt": "a cup", "data": {}}).encode()
    record[:len(content)] = np.frombuffer(content, np.uint8)
    part = {"tokens": np.zeros((_N // 2, 4), np.int32), "_mask": np.ones(_N // 2, np.bool_),
            "_id": np.arange(_N // 2), "_record": np.tile(record, (_N // 2, 1))}
    return {"t2i": part, "edit": part | {"cond_image": np.zeros((_N // 2, 1, 4, 4, 3), np.uint8)}}

  def close(self):
    pass


def _open(*terms, step=0, **fields):
  config = micro.config(
      "rl_nft", batch_size=_N, data__part_multiple=4, data__edit_share=0.5, reward__group_size=_K,
      reward__terms=tuple(terms), reward__timeout=20.0, reward__updates=2, reward__sub_batches=1,
      grad_accum_steps=1, **fields)
  return rollouts.Rollouts(
      config, _Task(), mesh_lib.make_mesh(1, 1, jax.devices()[:1]), _Stream(), step=step)


def test_rewards_of_a_rollout_become_the_batches_of_its_updates():
  made = _open((f"{_FAKES}brightness", 1.0), (f"{_FAKES}doubled", 0.5))
  batches = [made.next(jnp.float32(0)) for _ in range(3)]
  made.close()
  levels = 20 * np.arange(2 * _N)[:, None] + 5 * np.arange(_K)
  rewards = 2 * (levels % 256) / 255
  expected = np.zeros_like(rewards)
  kinds = np.arange(2 * _N) // (_N // 2) % 2  # prompts, edits, prompts, edits
  for kind in range(2):  # each with a deviation of its own
    expected[kinds == kind] = advantages.advantages(
        np.repeat(np.arange(_N), _K), rewards[kinds == kind].ravel()).reshape(-1, _K)
  found = np.concatenate([part["advantage"] for _, batch, _ in batches[:2] for part in batch.values()])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  _, batch, measured = batches[0]
  assert measured["reward"] == pytest.approx(rewards.mean(), rel=1e-5)
  assert measured["reward_brightness"] == pytest.approx(rewards.mean() / 2, rel=1e-5)
  assert measured["groups_dropped"] == measured["zero_std_share"] == 0
  assert batch["t2i"]["keep"].all()
  decays = [float(batch["edit"]["old_decay"][0]) for _, batch, _ in batches]
  assert decays == [1.0, pytest.approx(0.002), 1.0]  # it changes after a rollout's last update


def test_a_run_that_resumes_skips_the_updates_that_were_made():
  made, again = _open((f"{_FAKES}brightness", 1.0)), _open((f"{_FAKES}brightness", 1.0), step=1)
  made.next(jnp.float32(0))
  for _ in range(2):
    expected, found = made.next(jnp.float32(0)), again.next(jnp.float32(0))
    assert jax.tree.map(np.array_equal, expected[1], found[1]) == jax.tree.map(lambda _: True, expected[1])
    assert expected[2] == found[2]
  made.close()
  again.close()


def test_groups_without_rewards_are_dropped_and_counted_or_stop_the_run():
  made = _open((f"{_FAKES}nan_for_dark", 1.0), reward__on_failure="drop_group")
  _, batch, measured = made.next(jnp.float32(0))
  made.close()
  levels = (20 * np.arange(2 * _N)[:, None] + 5 * np.arange(_K)) % 256
  valid = (levels / 255 >= 0.3).all(1)
  assert measured["groups_dropped"] == (~valid).sum() > 0
  np.testing.assert_array_equal(
      np.concatenate([batch[name]["keep"] for name in ("t2i", "edit")]), valid[:_N])
  assert measured["reward"] == pytest.approx((levels[valid] / 255).mean(), rel=1e-5)
  assert (np.asarray(batch["t2i"]["advantage"])[~valid[:_N // 2]] == 0).all()
  made = _open((f"{_FAKES}nan_for_dark", 1.0))
  with pytest.raises(rollouts.RewardError, match=r"(?s)scores are not finite.*on_failure=drop_group"):
    made.next(jnp.float32(0))
  made.close()


def test_a_reward_that_fails_for_every_group_stops_the_run_in_any_case():
  made = _open((f"{_FAKES}brightness", 1.0), (f"{_FAKES}dies", 1.0), reward__on_failure="drop_group")
  with pytest.raises(rollouts.RewardError, match=r"died with status 3.*No prompt of this rollout"):
    made.next(jnp.float32(0))
  made.close()
