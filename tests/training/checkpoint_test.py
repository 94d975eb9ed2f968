"""Restoring a checkpoint gives the saved state, and bounds the copies on the host."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import peak_memory
from unilip_jax.optim import state as state_lib
from unilip_jax.training import checkpoint
from unilip_jax.weights import checksums, orbax_io, sources


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


# ---- damage


def _save_steps(folder, *steps):
  """Saves the state with `params` = step at each step."""
  manager = checkpoint.Manager(str(folder), keep=None)
  for step in steps:
    state = _state(count=2)
    state = state.replace(params=jax.tree.map(lambda x, step=step: x * step, state.params))
    manager.save(step, state, {"step": step, "position": 8 * step})
    manager.wait()
  manager.close()
  return _abstract(_state(count=2))


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


_DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]), "flipped": _flip,
    "empty": lambda path: path.write_bytes(b""), "absent": lambda path: path.unlink()}


def _files(folder):
  return sorted(p for p in folder.rglob("*") if p.is_file())


def test_any_damaged_file_of_the_newest_checkpoint_lets_the_one_before_it_continue(tmp_path):
  abstract = _save_steps(tmp_path / "sound", 3, 6)
  names = [p.relative_to(tmp_path / "sound") for p in _files(tmp_path / "sound/checkpoints/6")]
  assert len(names) > 12
  set_aside = 0
  for number, name in enumerate(names):
    kind = list(_DAMAGE)[number % len(_DAMAGE)]
    shutil.copytree(tmp_path / "sound", tmp_path / "run")
    _DAMAGE[kind](tmp_path / "run" / name)
    manager = checkpoint.Manager(str(tmp_path / "run"), keep=None)
    state, data = manager.restore(abstract)
    aside = (tmp_path / "run/checkpoints/6.damaged").exists()
    set_aside += aside
    # Orbax' own notes, which nothing here reads, and absent checksums leave a sound checkpoint.
    harmless = ("_CHECKPOINT_METADATA", "commit_success.txt", "checksums.json")
    assert aside or name.name in harmless, (kind, name)
    assert data["step"] == manager.latest_step() == (3 if aside else 6)
    np.testing.assert_array_equal(state.params["1"], np.full(8, 2 * data["step"]))
    if aside and number < 2:  # the step is reached again
      manager.save(6, state, {"step": 6, "position": 48})
      manager.wait()
      assert manager.latest_step() == 6
      assert manager.restore(abstract)[1]["position"] == 48
    manager.close()
    shutil.rmtree(tmp_path / "run")
  assert set_aside > 12


def test_checkpoints_that_a_killed_process_had_yet_to_delete_are_deleted_when_the_run_goes_on(tmp_path):
  abstract = _save_steps(tmp_path, 2, 3, 4, 5, 6)
  kept = lambda: sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
  manager = checkpoint.Manager(str(tmp_path), keep=2, keep_every=4, read_only=True)
  manager.restore(abstract)
  assert kept() == [2, 3, 4, 5, 6]
  shutil.rmtree(tmp_path / "checkpoints/2/params")  # killed while it deleted
  manager = checkpoint.Manager(str(tmp_path), keep=2, keep_every=4)
  assert manager.restore(abstract)[1]["step"] == 6
  manager.close()
  assert kept() == [4, 5, 6]


def test_without_a_sound_checkpoint_every_damaged_file_is_named_and_nothing_is_renamed(tmp_path):
  abstract = _save_steps(tmp_path, 3, 6)
  for step, kind in (("3", "flipped"), ("6", "truncated")):
    _DAMAGE[kind](next(p for p in _files(tmp_path / "checkpoints" / step) if "/params/d/" in str(p)))
  manager = checkpoint.Manager(str(tmp_path), keep=None)
  with pytest.raises(checksums.DamagedError) as error:
    manager.restore(abstract)
  assert re.search(r"checkpoints/6/params/d/\w+: \d+ bytes, not \d+\n", str(error.value))
  assert re.search(r"checkpoints/3/params/d/\w+: its content has changed", str(error.value))
  assert "copy these files from a backup" in str(error.value)
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]
  manager.close()


def test_readers_name_the_damaged_file_and_the_older_checkpoint(tmp_path):
  _save_steps(tmp_path, 3, 6)
  (tmp_path / "model.json").write_text('{"modules": {"0": {}, "1": {}}}')
  file = next(p for p in _files(tmp_path / "checkpoints/6/params") if "/d/" in str(p))
  _flip(file)
  with pytest.raises(ValueError, match=f"{file}: .*\n.*use the checkpoint before it, .*/checkpoints/3"):
    sources.open_weights(str(tmp_path)).load()
  other = checkpoint.Manager(str(tmp_path), keep=None, read_only=True)  # config.resume
  with pytest.raises(ValueError, match=f"{file}: .*\n.*use the checkpoint before it, .*/checkpoints/3"):
    other.restore(_abstract(_state(count=2)))
  assert other.restore(_abstract(_state(count=2)), 3)[1]["step"] == 3
  modules = sources.open_weights(str(tmp_path / "checkpoints/3")).load()
  np.testing.assert_array_equal(modules["1"], np.full(8, 6))


def test_a_checkpoint_of_an_earlier_version_is_read_without_checksums(tmp_path):
  abstract = _save_steps(tmp_path, 3, 6)
  for step in ("3", "6"):
    (tmp_path / "checkpoints" / step / "checksums.json").unlink()
  manager = checkpoint.Manager(str(tmp_path), keep=None)
  assert manager.restore(abstract)[1]["step"] == 6
  (tmp_path / "checkpoints/6/params/manifest.ocdbt").unlink()
  assert manager.restore(abstract)[1]["step"] == 3
  manager.close()


def test_damaged_frozen_weights_are_named(tmp_path):
  manager = checkpoint.Manager(str(tmp_path), keep=None)
  state = _state().replace(frozen={"llm": jnp.ones(8)})
  manager.save_frozen(state.frozen, {"modules": {}})
  manager.save(3, state, {"step": 3, "position": 24})
  manager.wait()
  assert manager.restore(_abstract(state))[1]["step"] == 3
  file = next(p for p in _files(tmp_path / "frozen") if "/d/" in str(p))
  _flip(file)
  with pytest.raises(ValueError, match=f"{file}: .*\n.*frozen is written once in a run"):
    manager.restore(_abstract(state))
  manager.close()


def test_what_a_killed_save_left_is_removed(tmp_path):
  abstract = _save_steps(tmp_path, 3)
  for name in ("checkpoints/6.orbax-checkpoint-tmp/params", "frozen.orbax-checkpoint-tmp"):
    (tmp_path / name).mkdir(parents=True)
  manager = checkpoint.Manager(str(tmp_path), keep=None)
  assert manager.restore(abstract)[1]["step"] == 3
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
  assert not (tmp_path / "frozen.orbax-checkpoint-tmp").exists()
  manager.close()


def test_damaged_notes_of_orbax_do_no_harm_and_old_checkpoints_are_deleted(tmp_path):
  abstract = _save_steps(tmp_path, 3, 6)
  for step in (3, 6):
    (tmp_path / f"checkpoints/{step}/_CHECKPOINT_METADATA").write_bytes(b"[" * 200_000)
  manager = checkpoint.Manager(str(tmp_path), keep=2, keep_every=9)
  state, data = manager.restore(abstract)
  assert data["step"] == 6
  for step in (9, 12, 15):
    manager.save(step, state, {"step": step, "position": step})
  manager.close()
  assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [9, 12, 15]
