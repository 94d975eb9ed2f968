"""Derivatives of embedded times are means over a window; values do not depend on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unilip_jax.models import time_embedding

_TIMES = np.array([1.0, 250.5, 999.0], np.float32)


def _slope(smoothing):
  return jax.jvp(lambda t: time_embedding.sinusoids(t, smoothing), (_TIMES,), (jnp.ones(3),))


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 10.0])
def test_the_derivative_is_the_difference_of_the_ends_of_the_window(smoothing):
  value, slope = _slope(smoothing)
  np.testing.assert_array_equal(value, time_embedding.sinusoids(_TIMES))
  half = 128
  frequency = np.exp(-np.log(1e4) * np.arange(half) / half)
  embed = lambda t: np.concatenate([np.cos(t * frequency), np.sin(t * frequency)], -1)
  window = smoothing or 1e-4
  times = np.float64(_TIMES)[:, None]
  np.testing.assert_allclose(
      slope, (embed(times + window) - embed(times - window)) / (2 * window), atol=2e-4)


def test_a_window_removes_what_turns_faster_than_it():
  assert np.abs(_slope(0.0)[1]).max() > 0.9
  assert np.abs(_slope(10.0)[1]).max() < 0.11


def test_an_interval_changes_nothing_at_first():
  params = time_embedding.init_interval(jax.random.key(0), 8)
  out = time_embedding.TimeEmbedding(8, jnp.float32).apply({"params": params}, jnp.array([0.0, 1.0]))
  np.testing.assert_array_equal(out, np.zeros((2, 8)))
  assert np.any(params["fc1"]["kernel"])
