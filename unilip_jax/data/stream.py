"""Maps a position p of the training stream to a record: a pure function of (seed, p).

The result depends on neither the number of hosts nor that of workers. One integer is therefore the
complete state of an iterator, and 4 hosts can continue what 8 began. Every epoch of a source is a new
permutation, computed without a table.
"""

from collections.abc import Sequence
import functools
import hashlib

import numpy as np

_BLOCK = 1000  # positions in which a mixture has its exact proportions
_ROUNDS = 4
_MASK = (1 << 64) - 1


def hashed(*values: int) -> int:
  """Returns a 64-bit hash of integers, equal on every machine."""
  data = b"".join(int(v).to_bytes(16, "little", signed=True) for v in values)
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def permuted(index: int, length: int, seed: int) -> int:
  """Returns the element at `index` of a pseudo-random permutation of range(length).

  Applies a Feistel network on the next power of four until the value is inside the range.
  """
  if length < 2:
    return 0
  half = max(1, ((length - 1).bit_length() + 1) // 2)
  mask = (1 << half) - 1
  value = index
  while True:
    left, right = value >> half, value & mask
    for r in range(_ROUNDS):
      left, right = right, left ^ (_mix(right + (r << 32) + seed) & mask)
    value = (left << half) | right
    if value < length:
      return value


def _mix(x: int) -> int:
  """Mixes 64 bits; the finaliser of splitmix64."""
  x = (x + 0x9E3779B97F4A7C15) & _MASK
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
  return x ^ (x >> 31)


class Shares:
  """Interleaves kinds of positions in fixed proportions, exact in each block of 1000 positions.

  Attributes:
    counts: positions of each kind in a block, rounded by largest remainders.
  """

  def __init__(self, weights: Sequence[float], seed: int):
    """Computes the proportions.

    Args:
      weights: relative shares, which are normalised.
      seed: of the order.

    Raises:
      ValueError: for weights that are negative or all zero.
    """
    weights = np.asarray(weights, np.float64)
    if (weights < 0).any() or not weights.sum():
      raise ValueError(f"data weights must be positive: {weights.tolist()}")
    exact = weights / weights.sum() * _BLOCK
    self.counts = np.floor(exact).astype(int)
    missing = _BLOCK - int(self.counts.sum())
    self.counts[np.argsort(self.counts - exact, kind="stable")[:missing]] += 1
    self._seed = seed

  def locate(self, position: int) -> tuple[int, int]:
    """Returns (kind of a position, number of earlier positions of that kind)."""
    block, offset = divmod(position, _BLOCK)
    order, ranks = self._order(block)
    kind = int(order[offset])
    return kind, block * int(self.counts[kind]) + int(ranks[offset])

  @functools.lru_cache(maxsize=16)  # noqa: B019
  def _order(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kinds of a block's positions, and how many of the same kind precede each."""
    rng = np.random.default_rng(hashed(self._seed, 0, block))
    order = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts))
    ranks = np.zeros(_BLOCK, np.int64)
    for kind in range(len(self.counts)):
      at = order == kind
      ranks[at] = np.arange(int(at.sum()))
    return order, ranks


class Mixture:
  """Interleaves sources in fixed proportions and shuffles each.

  Attributes:
    counts: positions of each source in a block of 1000.
  """

  def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int):
    """Computes the proportions.

    Args:
      lengths: records per source.
      weights: relative shares, which are normalised.
      seed: of the run.

    Raises:
      ValueError: for weights that are negative or all zero.
    """
    self._shares = Shares(weights, seed)
    self.counts = self._shares.counts
    self._lengths, self._seed = list(lengths), seed

  def locate(self, position: int) -> tuple[int, int]:
    """Returns (source, index of the record in it) at a stream position."""
    source, rank = self._shares.locate(position)
    epoch, index = divmod(rank, self._lengths[source])
    seed = hashed(self._seed, 1, source, epoch)
    return source, permuted(index, self._lengths[source], seed)

  def replacement(self, position: int, source: int, attempt: int) -> int:
    """Returns the index of the record that replaces a broken one; `attempt` counts from 1."""
    return hashed(self._seed, 2, position, attempt) % self._lengths[source]


def generator(seed: int, position: int) -> np.random.Generator:
  """Returns the generator of crop, flip and prompt dropout at a position."""
  return np.random.default_rng(hashed(seed, 3, position))
