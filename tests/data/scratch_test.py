"""Blocks are a thread's own, grow with the images, and are not kept above a limit."""

from concurrent import futures

import numpy as np

from unilip_jax.data import scratch


def test_a_block_is_used_again_and_grows():
  first = scratch.block("a", 100)
  assert np.shares_memory(first, scratch.block("a", 40))
  assert not np.shares_memory(first, scratch.block("b", 100))
  assert scratch.block("a", 200).shape == (200,)
  assert np.shares_memory(scratch.block("a", 200), scratch.block("a", 1))


def test_threads_have_blocks_of_their_own():
  with futures.ThreadPoolExecutor(1) as pool:
    other = pool.submit(scratch.block, "a", 100).result()
    assert np.shares_memory(other, pool.submit(scratch.block, "a", 100).result())
  assert not np.shares_memory(other, scratch.block("a", 100))


def test_a_large_block_is_not_kept():
  large = scratch.block("large", scratch._LARGEST + 1)
  assert not np.shares_memory(large, scratch.block("large", scratch._LARGEST + 1))
