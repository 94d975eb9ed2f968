"""Seeds of 64 bits give different keys; those below 2**32 give JAX's own."""

import jax
import numpy as np
import pytest

from unilip_jax.ops import seeds

_SEEDS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33 + 1, 5_000_000_000, 2**63, 2**64 - 1,
          -1, -2, -2**31, -2**32 - 1, -2**63)


def _numbers(seed):
  return np.asarray(jax.random.bits(seeds.key(seed), (4,)))


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 - 1])
def test_usual_seeds_give_the_same_numbers_as_before(seed):
  np.testing.assert_array_equal(_numbers(seed), jax.random.bits(jax.random.key(seed), (4,)))
  assert seeds.words(seed).shape == ()
  assert seeds.words(seed).dtype == np.uint32


def test_different_seeds_give_different_numbers():
  assert len({_numbers(seed).tobytes() for seed in _SEEDS}) == len(_SEEDS)


@pytest.mark.parametrize("seed", [3, 2**40 + 3, -3])
def test_a_compiled_program_gives_the_same_numbers(seed):
  run = jax.jit(lambda words: jax.random.bits(seeds.key(words), (4,)))
  np.testing.assert_array_equal(run(seeds.words(seed)), _numbers(seed))


def test_integers_of_numpy_are_seeds():
  np.testing.assert_array_equal(_numbers(np.uint64(2**63)), _numbers(2**63))
  np.testing.assert_array_equal(_numbers(np.int32(-5)), _numbers(-5))


@pytest.mark.parametrize("value", [1.5, None, True, "3", np.float32(1), np.bool_(True), 2**64, -2**63 - 1])
def test_other_values_are_refused_in_one_sentence(value):
  sentence = r"^config.seed=.*: a seed is an integer from -2\*\*63 to 2\*\*64 - 1$"
  with pytest.raises(ValueError, match=sentence):
    seeds.words(value, "config.seed")
