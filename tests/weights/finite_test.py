"""Weights with NaN or infinite values are refused by name, wherever they are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import saved
from unilip_jax.optim import state as state_lib
from unilip_jax.training import checkpoint
from unilip_jax.weights import finite, sources

_HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_is_found(dtype, value):
  values = np.linspace(-3e4, 3e4, 1000).astype(dtype)
  arrays = lambda: {name: jax.device_put(x) for name, x in {
      "a": values, "ids": np.arange(3), "none": values[:0]}.items()}
  finite.check(arrays(), "w", "import again")
  values[137] = value
  with pytest.raises(ValueError, match=r"(?s)^w holds NaN or infinite values in\n  a\nimport again$"):
    finite.check(arrays(), "w", "import again")


def test_the_largest_float32_values_are_finite():
  largest = np.finfo(np.float32).max
  finite.check({"a": jnp.asarray([largest, -largest])}, "w", "")


def test_stored_weights_are_refused(tmp_path):
  modules = {"mlp1": {"kernel": np.ones((2, 3), np.float32), "bias": np.full(3, np.nan, np.float32)}}
  saved.save(tmp_path / "w", modules, {"mlp1": {"llm_width": 3}}, {"source": ["x"]})
  stored = sources.open_weights(str(tmp_path / "w"))
  leaves = {path: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=_HERE)
            for path, x in stored.shapes.items()}
  with pytest.raises(ValueError, match=r"NaN or infinite values in\n  mlp1/bias\n"):
    stored.restore(leaves)
  del leaves["mlp1/bias"]
  assert set(stored.restore(leaves)) == {"mlp1/kernel"}


def test_a_run_does_not_continue_from_them(tmp_path):
  state = state_lib.TrainState(
      step=jnp.int32(3), seed=jnp.uint32(0), opt_state=(jnp.zeros(2),), gan={}, frozen={},
      params={"head": jnp.ones(2)}, ema={"head": jnp.asarray([1.0, jnp.inf])})
  manager = checkpoint.Manager(str(tmp_path), keep=None)
  manager.save(3, state, {"step": 3, "position": 24})
  manager.wait()
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_HERE), state)
  with pytest.raises(ValueError, match=r"checkpoints/3 holds NaN or infinite values in\n  ema/head\n"):
    manager.restore(abstract)
  manager.close()
