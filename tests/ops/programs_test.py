"""A later start loads programs: it traces nothing, gives the same bits, and never loads another program."""

import logging as std_logging
import os
import pathlib

from absl import logging
import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from unilip_jax.ops import backend, program_key, program_store, programs
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib

_X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
_traced: list[float] = []


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """The folder of a store of this test's own."""
  before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
  monkeypatch.setattr(program_store, "SECRET", str(tmp_path / "own" / "secret"))
  monkeypatch.delenv(program_store.SWITCH, raising=False)
  monkeypatch.setattr(program_key, "_edited", lambda: "")
  jax.config.update("jax_enable_compilation_cache", True)
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
  _traced.clear()
  yield tmp_path / "cache" / "programs"
  jax.config.update("jax_compilation_cache_dir", before[0])
  jax.config.update("jax_enable_compilation_cache", before[1])
  compilation_cache.reset_cache()


def _function(factor):
  def scaled(params, x, *, power=1):
    _traced.append(factor)
    return {"y": jnp.sin(params["w"] @ x.T) * factor ** power}

  return scaled


def _start(factor=3.0, x=_X, **static):
  """What a new process does: a program of a new function, called once."""
  run = programs.Program(_function(factor), static_argnames=("power",))
  return np.asarray(run({"w": jnp.ones((2, 4))}, x, **static)["y"])


def _warnings(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: seen.append(text % args))
  return seen


@pytest.fixture
def compilations():
  """The compilations of this process, one entry each."""
  events = []
  listen = lambda event, *_, **__: events.append(event) if event == program_store._COMPILED else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


def test_a_second_start_traces_and_compiles_nothing_and_gives_the_same_bits(compilations):
  first = _start(power=2)
  compilations.clear()
  second = _start(power=2)
  assert (_traced, compilations) == ([3.0], [])
  np.testing.assert_array_equal(first, second)
  plain = jax.jit(_function(3.0), static_argnames="power")({"w": jnp.ones((2, 4))}, _X, power=2)["y"]
  np.testing.assert_array_equal(first, plain)


def test_the_log_names_no_reset_of_the_cache(caplog):
  caplog.set_level("DEBUG")
  logger = std_logging.getLogger("jax._src.compilation_cache")
  logger.info("Another message")
  _start()
  said = [record.getMessage() for record in caplog.records if record.name == logger.name]
  assert "Another message" in said
  assert not [text for text in said if "Resetting" in text]


def test_a_second_call_of_a_process_reads_nothing(folder):
  run = programs.Program(_function(2.0))
  first = run({"w": jnp.ones((2, 4))}, _X)["y"]
  for file in folder.iterdir():
    file.unlink()
  np.testing.assert_array_equal(first, run({"w": jnp.ones((2, 4))}, _X)["y"])
  assert _traced == [2.0]


@pytest.mark.parametrize("change", [
    dict(factor=4.0), dict(x=_X[:2]), dict(x=_X.astype(np.float16)), dict(power=3)], ids=str)
def test_another_value_shape_dtype_or_option_is_another_program(change):
  _start()
  _start(**change)
  assert len(_traced) == 2


def test_another_setting_version_flag_or_processor_is_another_program(monkeypatch):
  key = lambda: program_key.digest(program_key.surroundings())
  keys = [key()]
  with jax.default_matmul_precision("float32"):
    keys.append(key())
  for name, value in (("_package", "changed"), ("_versions", ["jax-1.0.dist-info"]),
                      ("_devices", ["another processor"])):
    with monkeypatch.context() as patch:
      patch.setattr(program_key, name, lambda value=value: value)
      keys.append(key())
  monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_fast_math=false")
  keys.append(key())
  assert len(set(keys)) == 6
  assert "flags" in program_key._instructions() or not pathlib.Path("/proc/cpuinfo").exists()


@pytest.mark.parametrize("change", [
    ("_package", "a comment was added"), ("_versions", ["another-1.0.dist-info"])], ids=lambda c: c[0])
def test_changes_that_leave_the_program_as_it_was_cost_no_compilation(monkeypatch, compilations, change):
  first = _start()
  monkeypatch.setattr(program_key, change[0], lambda: change[1])
  compilations.clear()
  np.testing.assert_array_equal(first, _start())
  assert (_traced, compilations) == ([3.0, 3.0], [])
  _start()
  assert len(_traced) == 2  # the new key is known now


def test_another_compiler_compiles_the_same_text_again(monkeypatch, compilations):
  first = _start()
  monkeypatch.setattr(program_key, "_package", lambda: "a comment was added")
  monkeypatch.setattr(jax, "__version__", "0.99")
  compilations.clear()
  np.testing.assert_array_equal(first, _start())
  assert len(compilations) == 1


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda content: content[:20], lambda _: b""],
    ids=["a bit", "the end", "all"])
def test_a_damaged_file_is_named_and_made_again(folder, monkeypatch, damage):
  first = _start()
  program, = folder.glob("*.program")
  program.write_bytes(damage(program.read_bytes()))
  seen = _warnings(monkeypatch)
  np.testing.assert_array_equal(first, _start())
  assert all(str(program) in text and "made again" in text for text in seen)
  assert seen
  _start()
  assert len(_traced) == 2  # the third start loads what the second one wrote


def test_a_file_of_another_user_or_program_is_never_unpickled(folder, tmp_path, monkeypatch):
  _start()
  monkeypatch.setattr(program_store, "SECRET", str(tmp_path / "other" / "secret"))
  monkeypatch.setattr(program_store.pickle, "loads", lambda _: pytest.fail("unpickled"))
  seen = _warnings(monkeypatch)
  _start()
  assert len(_traced) == 2
  assert any("written by somebody else" in text for text in seen)
  keys = sorted(folder.glob("*.program"))
  _start(5.0)
  new, = set(folder.glob("*.program")) - set(keys)
  new.write_bytes(keys[0].read_bytes())  # signed by this user, for another key
  _start(5.0)
  assert _traced[2:] == [5.0, 5.0]


def test_a_secret_that_others_can_read_stores_nothing(folder, tmp_path):
  _start()
  secret = tmp_path / "own" / "secret"
  assert secret.stat().st_mode & 0o777 == 0o600
  assert folder.stat().st_mode & 0o777 == 0o700
  secret.chmod(0o644)
  _start()
  assert len(_traced) == 2


@pytest.mark.parametrize("off", ["switch", "no folder", "a bucket", "planning", "several processes"])
def test_what_stores_nothing(folder, monkeypatch, off):
  if off == "switch":
    monkeypatch.setenv(program_store.SWITCH, "0")
  elif off in ("no folder", "a bucket"):
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/xla" if off == "a bucket" else None)
  elif off == "several processes":
    monkeypatch.setattr(jax, "process_count", lambda: 2)
  if off == "planning":
    with backend.planning("cpu"):
      assert program_store.folder() is None
  assert (program_store.folder() is None) == (off != "planning")
  if off not in ("a bucket", "planning"):
    _start()
    _start()
    assert len(_traced) == 2
    assert not folder.exists()


@pytest.mark.parametrize("function", [
    lambda x: jnp.linalg.svd(x)[1], lambda x: jax.pure_callback(np.sin, x, x)], ids=["LAPACK", "callback"])
def test_programs_that_call_into_this_process_are_not_stored(folder, function):
  np.testing.assert_allclose(programs.Program(function)(_X), function(_X), rtol=1e-6)
  assert not list(folder.parent.rglob("*.program"))


def test_functions_of_one_line_are_different_programs(folder):
  for function in (lambda x: x + 1), (lambda x: x + 2):
    np.testing.assert_array_equal(programs.Program(function)(_X), function(_X))
  assert len(list(folder.glob("*.key"))) == 2


def test_a_package_that_is_edited_while_it_runs_stores_nothing(folder, tmp_path, monkeypatch):
  (tmp_path / "package").mkdir()
  (file := tmp_path / "package" / "module.py").write_text("")
  monkeypatch.undo()
  monkeypatch.setattr(program_key, "_PACKAGE", tmp_path / "package")
  os.utime(file, (0, 0))
  assert program_key._edited() == ""
  os.utime(file)
  assert program_key._edited() == str(file)
  with pytest.raises(program_key.UnknownValueError, match="written after"):
    program_key.surroundings()


def test_a_value_that_cannot_be_described_runs_without_the_store(folder):
  thing = object()
  run = programs.Program(lambda x: x * (1 if thing else 2))
  np.testing.assert_array_equal(run(_X), _X)
  assert not folder.exists()


def test_donated_arguments_and_calls_inside_of_other_programs_work():
  def advance(count, *, by):
    return count + by

  for _ in range(2):
    run = programs.Program(advance, donate_argnames=("count",))
    count = jnp.zeros(())
    assert run(count, by=np.float32(2)) == 2
    assert count.is_deleted()
  assert jax.jit(lambda x: run(x, by=x))(jnp.ones(())) == 2


def test_arrays_stay_where_they_were_on_a_mesh_of_any_order():
  mesh = mesh_lib.make_mesh(2, 4, jax.devices()[:8][::-1])
  split = mesh_lib.batch_sharding(mesh)
  rows = jax.device_put(np.arange(48.0, dtype=np.float32).reshape(16, 3), split)

  def centred(x):
    return x - x.mean(0, keepdims=True), mesh.size

  results = []
  for _ in range(2):
    out = split, mesh_lib.replicated(mesh)
    results.append(programs.Program(activations.under(mesh, centred), out_shardings=out)(rows)[0])
  first, second = results
  assert first.sharding == second.sharding == split
  for a, b in zip(first.addressable_shards, second.addressable_shards):
    assert (a.device, a.index) == (b.device, b.index)
    np.testing.assert_array_equal(a.data, b.data)
  np.testing.assert_allclose(second, np.asarray(rows) - np.asarray(rows).mean(0), rtol=1e-6)
  other = mesh_lib.batch_sharding(mesh_lib.make_mesh(2, 4, jax.devices()[:8]))
  assert program_key.placement(other) != program_key.placement(split)


def test_a_number_is_counted_once(folder):
  counts = []
  make = lambda: counts.append(1) or 2.5e10
  assert [program_store.value("flops", ["config"], make) for _ in range(3)] == [2.5e10] * 3
  assert len(counts) == 1
  assert program_store.value("flops", ["another config"], make) == 2.5e10
  assert len(counts) == 2


def test_files_that_were_not_used_for_long_are_removed(folder):
  _start()
  old = sorted(folder.iterdir())
  for file in old:
    os.utime(file, (0, 0))
  _start(4.0)
  assert not any(file.exists() for file in old)
  assert len(list(folder.iterdir())) == len(old)
