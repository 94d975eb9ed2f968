"""Rollouts: samples images of prompts with the old policy, scores them, and makes the batches of updates.

A rollout is a pure function of (old policy, seed, stream position), up to rewards that are not. The old
policy changes only after the last update of a rollout. A run that resumes between updates of a rollout
therefore makes the rollout again, and continues bit for bit.
"""

import collections
from collections.abc import Mapping, Sequence
import json
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from unilip_jax.data import batch as batch_lib
from unilip_jax.data import pipeline
from unilip_jax.data import stream as stream_lib
from unilip_jax.losses import advantages as advantages_lib
from unilip_jax.multihost import session
from unilip_jax.ops import seeds
from unilip_jax.optim import state as state_lib
from unilip_jax.rewards import base as rewards
from unilip_jax.rewards import pool
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base
from unilip_jax.training import ledger

_PURPOSE = 5  # of the seed, see data/stream.py
_EQUAL = 1e-6  # deviation of a group whose rewards count as equal


class RewardError(ValueError):
  """A reward failed, and reward.on_failure is "stop", or no group of a rollout is left."""


class Rollouts:
  """Makes the batches of updates, see training/inputs.py.

  Attributes:
    stream: of this process's prompts.
  """

  def __init__(
      self, config: ml_collections.ConfigDict, task: base.LearnsFromRewards, mesh: jax.sharding.Mesh,
      stream: pipeline.TrainStream, *, step: int):
    """Starts the processes of the rewards.

    Args:
      config: uses reward.*, batch_size and seed.
      task: samples.
      mesh: the devices.
      stream: of the prompts, from the beginning of a rollout.
      step: number of earlier updates; of an incomplete rollout, those updates are skipped.
    """
    self._config, self._task, self.stream = config, task, stream
    self._split = mesh_lib.batch_sharding(mesh)
    self._rollout = jax.jit(activations.under(mesh, task.rollout), out_shardings=self._split)
    self._terms = rewards.read_terms(config.reward.terms)
    self._pool = pool.Pool(self._terms, workers=config.reward.workers, timeout=config.reward.timeout)
    self._skipped = step % config.reward.updates
    self._step = step - self._skipped  # of the next rollout's first update
    self._ready: collections.deque = collections.deque()
    self._failures: list[str] = []

  def next(self, state: state_lib.TrainState) -> tuple[np.ndarray, dict[str, Any], dict[str, float]]:
    """Returns the batch of the next update; the first one of a rollout samples it.

    Raises:
      RewardError: see there.
    """
    if not self._ready:
      self._ready.extend(self._make(self._task.rollout_params(state)))
      for _ in range(self._skipped):
        self._ready.popleft()
      self._skipped = 0
    return self._ready.popleft()

  def close(self) -> None:
    """Ends the processes of rewards and data."""
    self._pool.close()
    self.stream.close()

  def _make(self, params: base.Params) -> list[tuple[np.ndarray, dict[str, Any], dict[str, float]]]:
    """Samples and scores one rollout: (ids, batch, metrics) of each of its updates."""
    settings = self._config.reward
    seed = seeds.words(stream_lib.hashed(self._config.seed, _PURPOSE, self.stream.position))
    hosts = [next(self.stream) for _ in range(settings.updates)]
    images, records, entries, first = [], [], [], 0
    with ledger.during("rollout"):
      for host in hosts:
        for name, part in host.items():
          prompts = {k: v for k, v in batch_lib.device_part(part).items() if not k.startswith("_")}
          sampled, kept = self._rollout(params, self._put(prompts), seed, np.int32(first))
          entries.append(kept)
          images.append(sampled)
          records += _records(name, part)
          first += sampled.shape[0]
      with session.waiting("the images of a rollout"):
        local = np.concatenate([mesh_lib.local_rows(x) for x in images])
    with ledger.during("reward"), session.waiting("the rewards of a rollout"):
      scores = self._score(local.reshape(-1, *local.shape[2:]), records)
    signals, keep, measured = self._judge(scores, [part for host in hosts for part in host])
    result = []
    for number, host in enumerate(hosts):
      step = self._step + number + 1
      decay = 1.0 if number + 1 < settings.updates else advantages_lib.old_policy_decay(
          settings.old_decay, step)
      batch = {}
      for name, part in host.items():
        count = len(part["_mask"])
        signal, kept, entry = signals.pop(0), keep.pop(0), entries.pop(0)
        batch[name] = entry | self._put(
            {"keep": kept, "old_decay": np.full(count, decay, np.float32), **signal})
      result.append((batch_lib.ids(host), batch, measured))
    self._step += settings.updates
    return result

  def _put(self, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return {k: jax.make_array_from_process_local_data(self._split, v) for k, v in rows.items()}

  # ---- rewards

  def _score(self, images: np.ndarray, records: Sequence[rewards.Record]) -> list[dict[str, np.ndarray]]:
    """Scores this process's images; returns the scores of every process, {label: float64[B, K]}."""
    group = self._config.reward.group_size
    scores = self._pool.score(images, [r for r in records for _ in range(group)])
    for failure in scores.failures:
      logging.warning("%s", failure)
    texts = session.all_gather_text("the rewards", json.dumps({
        "terms": {label: values.tolist() for label, values in scores.terms.items()},
        "failures": scores.failures}))
    gathered = [json.loads(text) for text in texts]
    self._failures = [f for one in gathered for f in one["failures"]]
    return [{label: np.reshape(values, (-1, group)) for label, values in one["terms"].items()}
            for one in gathered]

  def _judge(
      self, scores: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]
  ) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray], dict[str, float]]:
    """Computes advantages over all processes.

    Args:
      scores: from `_score`.
      names: of the sub-batches of the rollout, in its order.

    Returns:
      (this process's signals of each sub-batch, its groups to keep, metrics of the rollout).

    Raises:
      RewardError: see there.
    """
    settings = self._config.reward
    total = [sum(t.weight * one[t.label] for t in self._terms) for one in scores]
    sizes = [batch_lib.part_sizes(self._config)[name] // len(scores) for name in names]
    own, everything = total[jax.process_index()], np.concatenate(total)
    valid = np.isfinite(everything).all(1)
    why = "; ".join(self._failures[:5])
    if not valid.all() and settings.on_failure == "stop":
      raise RewardError(f"{why}. Rewards of {int((~valid).sum())} of {len(valid)} prompts are missing; "
                        "correct the reward and run the same command again, or set "
                        "--config.reward.on_failure=drop_group")
    if not valid.any():
      raise RewardError(f"{why}. No prompt of this rollout has rewards for all its images")
    kept = everything[valid]
    kinds = np.concatenate([np.repeat(names, sizes)] * len(scores))
    values, by_kind = np.zeros_like(everything), {}
    for name in dict.fromkeys(names):
      # Each kind has a deviation of its own: with that of both, what varies less would hardly be learned.
      if (of_kind := valid & (kinds == name)).any():
        own_kind = everything[of_kind]
        group = np.repeat(np.arange(len(own_kind)), settings.group_size)
        values[of_kind] = advantages_lib.advantages(
            group, own_kind.ravel(), global_std=settings.global_std).reshape(own_kind.shape)
        by_kind[f"reward_{name}"] = float(own_kind.mean())
    measured = {
        "reward": float(kept.mean()), "reward_std": float(kept.std()),
        "zero_std_share": float((kept.std(1) < _EQUAL).mean()),
        "groups_dropped": float((~valid).sum())}
    for label in scores[0]:
      measured[f"reward_{label}"] = float(np.nanmean(np.concatenate([one[label] for one in scores])))
    measured |= by_kind
    first = sum(len(t) for t in total[:jax.process_index()])
    mine = slice(first, first + len(own))
    edges = np.cumsum(sizes)[:-1]
    return ([self._task.learning_signal(part) for part in np.split(values[mine], edges)],
            np.split(valid[mine], edges), measured)


def _records(name: str, part: Mapping[str, np.ndarray]) -> list[rewards.Record]:
  """Reads what was asked in each row of a sub-batch."""
  records = []
  for i, row in enumerate(part["_record"]):
    content = json.loads(row.tobytes().rstrip(b"\0"))
    source = part["cond_image"][i, 0] if "cond_image" in part else None
    records.append(rewards.Record(name, content["prompt"], content["data"], source))
  return records
