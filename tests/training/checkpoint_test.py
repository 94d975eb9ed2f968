"""Restoring a checkpoint gives the saved state, and bounds the copies on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import peak_memory
from unilip_jax.optim import state as state_lib
from unilip_jax.training import checkpoint
from unilip_jax.weights import orbax_io


def _state(size=8, count=1):
  """A state of `count` float32 arrays, of `size` values each."""
  return state_lib.TrainState(
      step=jnp.int32(3), seed=jnp.uint32(0), opt_state=(jnp.zeros(2),), ema={}, gan={}, frozen={},
      params={str(i): jnp.full(size, i + 1, jnp.float32) for i in range(count)})


def _save(folder, state):
  manager = checkpoint.Manager(str(folder), keep=None)
  manager.save(3, state, {"step": 3, "position": 24})
  manager.close()


def _abstract(state):
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state)


def test_a_checkpoint_is_restored_as_it_was_saved(tmp_path):
  state = _state()
  _save(tmp_path, state)
  restored, data = checkpoint.Manager(str(tmp_path), keep=None, read_only=True).restore(_abstract(state))
  assert data == {"step": 3, "position": 24}
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_another_shape_is_refused_with_both_shapes(tmp_path):
  _save(tmp_path, _state())
  manager = checkpoint.Manager(str(tmp_path), keep=None, read_only=True)
  with pytest.raises(ValueError, match=r"0: checkpoint \(8,\), model \(9,\)"):
    manager.restore(_abstract(_state(size=9)))


@peak_memory.needs_linux
def test_restoring_bounds_the_copies_on_the_host(tmp_path, monkeypatch):
  size, count = 2**22, 24  # 16 MiB an array
  _save(tmp_path / "small", _state())
  _save(tmp_path / "large", _state(size, count))
  managers = {name: checkpoint.Manager(str(tmp_path / name), keep=None, read_only=True)
              for name in ("small", "large")}
  managers["small"].restore(_abstract(_state()))  # starts orbax' threads
  abstract = _abstract(jax.eval_shape(lambda: _state(size, count)))
  monkeypatch.setattr(orbax_io, "_concurrent_gb", lambda tree: 0.02)  # one array at a time
  with peak_memory.measured() as peak:
    jax.block_until_ready(managers["large"].restore(abstract))
  assert peak[0] / (4 * size * count) < 1.4  # up to 2.2 without a limit


def test_the_limit_reaches_every_read(tmp_path, monkeypatch):
  _save(tmp_path, _state(size=1000))
  monkeypatch.setattr(orbax_io, "_concurrent_gb", lambda tree: 1e-6)  # 1000 bytes, an array has 4000
  with pytest.raises(ValueError, match="Requested more bytes than we reserved space for: 4000"):
    checkpoint.Manager(str(tmp_path), keep=None, read_only=True).restore(_abstract(_state(size=1000)))


def test_the_limit_of_copies_holds_the_largest_array():
  assert orbax_io._concurrent_gb(_abstract(_state())) == 2
  assert orbax_io._concurrent_gb({"a": jax.ShapeDtypeStruct((3, 10**9), jnp.bfloat16)}) == 13
