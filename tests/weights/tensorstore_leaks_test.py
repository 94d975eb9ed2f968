"""Saving checkpoints again and again keeps nothing in memory."""

import gc
import itertools
import logging
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest
import tensorstore as ts

from unilip_jax.optim import state as state_lib
from unilip_jax.training import checkpoint
from unilip_jax.weights import orbax_io, tensorstore_leaks

_ROOT = pathlib.Path(__file__).resolve().parents[2]
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


def growth(folder: str) -> int:
  """Least growth of Python's objects from one checkpoint to the next."""
  manager = checkpoint.Manager(folder, keep=2)
  blocks = []
  for step in range(9):
    _save(manager, step)
    blocks.append(_blocks())
  manager.close()
  return min(after - before for before, after in itertools.pairwise(blocks[2:]))


def test_checkpoints_leave_no_objects_behind(tmp_path):
  """In a process of its own: threads of other tests make and free objects meanwhile."""
  program = f"from tests.weights import tensorstore_leaks_test as t; print(t.growth({str(tmp_path)!r}))"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300,
                        check=True, cwd=_ROOT, env=os.environ | {"PYTHONPATH": str(_ROOT)})
  # TensorStore's leak: 4 an array, and hundreds. Tables that grow a little less each time are no leak.
  assert int(done.stdout.split()[-1]) < 4 * _COUNT


def test_reading_an_item_warns_of_no_absent_files(tmp_path, caplog):
  manager = checkpoint.Manager(str(tmp_path), keep=2)
  _save(manager, 8)
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
