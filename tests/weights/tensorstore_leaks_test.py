"""Saving checkpoints again and again keeps nothing in memory."""

import gc
import logging
import sys

import jax.numpy as jnp
import pytest
import tensorstore as ts

from unilip_jax.optim import state as state_lib
from unilip_jax.training import checkpoint
from unilip_jax.weights import orbax_io, tensorstore_leaks

_COUNT = 50  # arrays in a checkpoint


def _save(manager, step):
  state = state_lib.TrainState(
      step=jnp.int32(step), seed=jnp.uint32(0), opt_state=(), ema={}, gan={}, frozen={},
      params={str(i): jnp.ones(8) for i in range(_COUNT)})
  manager.save(step, state, {"step": step, "position": step})
  manager.wait()


def _blocks():
  gc.collect()
  return sys.getallocatedblocks()


def test_checkpoints_leave_no_objects_behind(tmp_path, caplog):
  manager = checkpoint.Manager(str(tmp_path), keep=2)
  for step in range(3):
    _save(manager, step)
  before = _blocks()
  for step in range(3, 9):
    _save(manager, step)
  manager.wait()
  grown = (_blocks() - before) / 6
  assert grown < _COUNT, f"{grown} objects a checkpoint"  # TensorStore's leak: 4 an array, and hundreds
  with caplog.at_level(logging.WARNING, "absl"):
    assert orbax_io.read_tree(tmp_path / "checkpoints/8/params", ["0"])
  assert not caplog.messages  # of files that an item does not have
  manager.close()


@pytest.mark.parametrize("spec", [
    {"driver": "file", "path": "/a b/'\"/"}, {"driver": "memory"}, "gs://bucket/folder/",
    {"driver": "ocdbt", "base": {"driver": "file", "path": "/x/",
                                 "file_io_locking": {"mode": "non_atomic"}}}])
def test_the_json_of_a_spec_is_tensorstores(spec):
  for include_defaults in (False, True, False):
    made = ts.KvStore.Spec(spec).to_json(include_defaults=include_defaults)
    assert made == tensorstore_leaks._spec_to_json(ts.KvStore.Spec(spec), include_defaults=include_defaults)
    made.clear()  # what a caller changes is its own
