"""The benchmark of sampling counts the work of the calls that it times."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sample
from unilip_jax.data import text as text_lib
from unilip_jax.models import presets, unilip


def _flops(steps, guidance):
  dims = presets.get("tiny").unilip
  network = unilip.Unilip(dims, jnp.float32)
  both = types.SimpleNamespace(
      network=lambda: network, dims=dims, image_size=112,
      params=jax.eval_shape(network.init, jax.random.key(0)))
  text = text_lib.Text("shapes")
  tokens, mask = sample._tokens(text, 32, 2, guidance)
  start = jax.ShapeDtypeStruct((2, 4, 4, 32), np.float32)
  return sample._model_flops(both, text, tokens, mask, start, types.SimpleNamespace(
      steps=steps, guidance=guidance))


def test_guidance_doubles_the_work_of_a_step_and_steps_add_up():
  one, two, three = (_flops(steps, 1.0) for steps in (1, 2, 3))
  np.testing.assert_allclose(three - two, two - one)
  np.testing.assert_allclose(_flops(2, 4.5) - _flops(1, 4.5), 2 * (two - one))
