"""Advantages of rewarded samples, in float64 NumPy on the host: equal on every machine and mesh.

References: DiffusionNFT (arXiv 2509.16117), Flow-GRPO (arXiv 2505.05470); masks as Edit-R1 (UniWorld-V2)
applies them. A group holds the samples of one prompt.
"""

import dataclasses

import numpy as np

MODES = ("all", "positive_only", "negative_only", "one_only", "binary")
_SMALLEST_STD = 1e-4


@dataclasses.dataclass(frozen=True)
class GroupStatistics:
  """Holds the statistics of each group.

  Attributes:
    groups: int64[G], sorted group numbers.
    mean: float64[G] of the group's rewards.
    std: float64[G], population standard deviation.
  """

  groups: np.ndarray
  mean: np.ndarray
  std: np.ndarray


def group_statistics(group: np.ndarray, rewards: np.ndarray) -> GroupStatistics:
  """Computes mean and standard deviation of the rewards of each group.

  Args:
    group: int[B], the group of each sample.
    rewards: float[B].

  Raises:
    ValueError: for rewards that are not finite, with their number and the first position.
  """
  rewards = np.asarray(rewards, np.float64)
  if bad := int((~np.isfinite(rewards)).sum()):
    raise ValueError(f"{bad} of {rewards.size} rewards are not finite, the first at position "
                     f"{int(np.argmin(np.isfinite(rewards)))}")
  groups = np.unique(group)
  members = [rewards[np.asarray(group) == g] for g in groups]
  mean, std = np.array([m.mean() for m in members]), np.array([m.std() for m in members])
  return GroupStatistics(groups, mean, std)


def advantages(group: np.ndarray, rewards: np.ndarray, *, global_std: bool = True) -> np.ndarray:
  """Computes (reward − mean of its group) / standard deviation.

  Args:
    group: int[B], the group of each sample.
    rewards: float[B].
    global_std: divides by the standard deviation of all rewards; False: by that of the sample's group.

  Returns:
    float64[B].
  """
  statistics = group_statistics(group, rewards)
  rewards = np.asarray(rewards, np.float64)
  at = np.searchsorted(statistics.groups, group)
  std = rewards.std() if global_std else statistics.std[at]
  return (rewards - statistics.mean[at]) / (std + _SMALLEST_STD)


def optimality(advantage: np.ndarray, *, clip: float = 5.0, mode: str = "all") -> np.ndarray:
  """Maps advantages to the probability r that a sample is a good one (DiffusionNFT).

  Args:
    advantage: float64[B].
    clip: A is clipped to [−clip, clip].
    mode: "all"; "positive_only" and "negative_only" set the other sign to 0; "one_only" is 1 for A > 0,
      else 0; "binary" is the sign of A.

  Returns:
    float64[B] in [0, 1]; ½ for A = 0.

  Raises:
    ValueError: for an unknown mode.
  """
  if mode not in MODES:
    raise ValueError(f"unknown mode {mode!r} of advantages; choose {', '.join(MODES)}")
  clipped = np.clip(advantage, -clip, clip)
  if mode == "positive_only":
    clipped = np.clip(clipped, 0, None)
  elif mode == "negative_only":
    clipped = np.clip(clipped, None, 0)
  elif mode == "one_only":
    clipped = np.where(clipped > 0, 1.0, 0.0)
  elif mode == "binary":
    clipped = np.sign(clipped)
  return np.clip(clipped / (2 * clip) + 0.5, 0, 1)


def solved_groups(statistics: GroupStatistics, *, std: float = 0.05, mean: float = 0.9) -> np.ndarray:
  """Returns the groups that need no more training, whose prompts are not sampled again (Edit-R1).

  Their rewards differ by less than `std` and are above `mean` on average.
  """
  return statistics.groups[(statistics.std < std) & (statistics.mean > mean)]


def informative(group: np.ndarray, statistics: GroupStatistics, *, std: float = 0.05,
                mean: float = 0.9) -> np.ndarray:
  """Marks samples of groups whose rewards differ and are not high yet (Edit-R1): bool[B]."""
  at = np.searchsorted(statistics.groups, group)
  return (statistics.std[at] > std) & (statistics.mean[at] < mean)


def old_policy_decay(kind: int, updates: int) -> float:
  """Returns d of θ_old ← d θ_old + (1 − d) θ after `updates` optimizer updates (DiffusionNFT).

  Args:
    kind: 0 is on-policy; 1 rises to 0.5 within 500 updates; 2 is on-policy for 75 updates, then rises to
      0.999.
    updates: optimizer updates so far.

  Raises:
    ValueError: for an unknown kind.
  """
  if kind == 0:
    return 0.0
  if kind == 1:
    return min(0.001 * updates, 0.5)
  if kind == 2:
    return 0.0 if updates < 75 else min(0.0075 * (updates - 75), 0.999)
  raise ValueError(f"unknown kind {kind!r} of old-policy decay; choose 0, 1 or 2")
