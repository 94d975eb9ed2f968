"""Runs: bit-identical resume after any end, one compilation, clear stops."""

import dataclasses
import json
import logging
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
from PIL import Image
import pytest

from tests import cpu_devices, micro, saved
from unilip_jax import tasks, train
from unilip_jax.common import tree
from unilip_jax.data import pipeline
from unilip_jax.models import presets
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import checkpoint, initial_state, late_metrics, ledger, metrics, run_files
from unilip_jax.training import step as step_lib
from unilip_jax.weights import orbax_io

_STEP_FLOPS = step_lib.step_flops  # before micro.skip_flops
_ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def micro_preset():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    micro.skip_flops(patch)
    yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return micro.write_images(tmp_path_factory.mktemp("train") / "images")


@pytest.fixture(scope="module")
def stage1(images, tmp_path_factory):
  """Folder of a run of stage 1 over six steps, with samples and evaluations. Tests only read it."""
  folder = tmp_path_factory.mktemp("stage1")
  (folder / "began").write_text(str(time.time()))
  train.train(micro.config("stage1", images, sample_every_steps=3, eval__every_steps=3), str(folder))
  return folder


def _stage2(images, stage1, **fields):
  """With a seed that needs all words of ops/seeds.py."""
  return micro.config("stage2", images, init_from=str(stage1), total_steps=6, gan__start_step=3,
                      mesh__min_shard_size=16, mesh__fsdp=1, seed=-2**40 - 3, **fields)


@pytest.fixture(scope="module")
def stage2(images, stage1, tmp_path_factory):
  """(folder of a run of stage 2 from that stage 1, JAX's log of it). Tests only read the folder."""
  folder, lines = tmp_path_factory.mktemp("stage2"), []
  handler = logging.Handler()
  handler.emit = lambda record: lines.append(record.getMessage())
  logging.getLogger("jax").addHandler(handler)
  with jax.log_compiles():
    train.train(_stage2(images, stage1), str(folder))
  logging.getLogger("jax").removeHandler(handler)
  return folder, lines


def _start(stage, images, workdir, **fields):
  """A run as a process of its own, on one device, for which it compiles soonest."""
  env = cpu_devices.environment(1)
  env.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir.parent / "xla"))
  return subprocess.Popen(
      [sys.executable, "-m", "tests.micro", stage, str(images), str(workdir),
       *(f"{k}={v!r}" for k, v in fields.items())],
      env=env, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process):
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out[-3000:]
  return out


def _losses(workdir):
  return {r["step"]: r["train/loss"] for r in metrics.read(workdir) if "train/loss" in r}


def _assert_same_run(a, b, step):
  """Parameters, EMA, optimizer and data position of two workdirs, bit for bit."""
  for item in ("params", "ema", "optimizer"):
    left, right = (orbax_io.read_tree(w / "checkpoints" / str(step) / item) for w in (a, b))
    chex.assert_trees_all_equal(left, right)
  positions = [json.loads(next((w / "checkpoints" / str(step) / "data").glob("*")).read_text())
               for w in (a, b)]
  assert positions[0] == positions[1]
  assert _losses(a) == _losses(b)


def _wait_for(condition, process, seconds=240):
  deadline = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, process.communicate()[0][-3000:]
    assert time.monotonic() < deadline, "the run did not get there in time"
    time.sleep(0.05)


@pytest.mark.slow
def test_killed_stopped_and_rerun_equals_uninterrupted_bit_for_bit(images, tmp_path):
  """The images are own data (data.own). tests/buckets does the same with a discriminator."""
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  log = _finish(_start("stage1", images, whole, total_steps=12, data__own=str(images)))
  assert f"is read as images: {len(list(images.iterdir()))} images" in log
  assert f"what the model gets: {whole}/own_data.png" in log
  assert Image.open(whole / "own_data.png").size[0] > micro.IMAGE_SIZE
  _end(signal.SIGKILL, images, workdir, checkpoint=3)
  log = _end(signal.SIGTERM, images, workdir, checkpoint=6)
  assert "rerun the same command to continue" in log
  _finish(_start("stage1", images, workdir, total_steps=12, data__own=str(images)))
  _assert_same_run(workdir, whole, 12)


def _end(how, images, workdir, checkpoint):
  """Sends a signal to a run one step or more after a checkpoint; returns what it printed."""
  process = _start("stage1", images, workdir, total_steps=12, sleep=0.5, data__own=str(images))
  _wait_for(lambda: (workdir / "checkpoints" / str(checkpoint)).exists()
            and _steps_written(workdir) > checkpoint, process)
  process.send_signal(how)
  log, _ = process.communicate(timeout=120)
  assert process.returncode == (0 if how == signal.SIGTERM else -how), log[-3000:]
  steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
  assert checkpoint <= max(steps) < 12, "the signal came too early or too late to mean anything"
  return log


def _steps_written(workdir):
  try:
    return max(_losses(workdir), default=0)
  except FileNotFoundError:
    return 0


def _run(config, workdir):
  return train.train(config, str(workdir))


def _first_state(config, workdir, mesh=None):
  task = tasks.make(config)
  manager = checkpoint.Manager(str(workdir), keep=None, read_only=True)
  return task, initial_state.restore_or_init(task, config, manager, mesh or mesh_lib.config_mesh(config))


@pytest.mark.parametrize(("data", "fsdp", "devices"), [
    (2, 4, 8), pytest.param(1, 1, 1, marks=pytest.mark.thorough)])
def test_restoring_on_another_mesh_gives_the_same_next_loss(
    images, stage1, stage2, tmp_path, data, fsdp, devices):
  """The run was on 8 × 1 devices; its fourth step is the first with a discriminator."""
  (tmp_path / "checkpoints").mkdir()
  for name in ("frozen", "model.json", "checkpoints/3"):
    (tmp_path / name).symlink_to(stage2[0] / name)
  config, mesh = _stage2(images, stage1), mesh_lib.make_mesh(data, fsdp, jax.devices()[:devices])
  task, start = _first_state(config, tmp_path, mesh)
  assert (start.step, start.position) == (3, 24)
  specs = [str(x.sharding.spec) for x in jax.tree.leaves(start.state.params)]
  assert any("fsdp" in spec for spec in specs) == (fsdp > 1)
  stream = pipeline.train_stream(
      config, start_position=24, process_index=0, process_count=1, workdir=str(tmp_path))
  batch = {name: next(stream)[name] for name in task.batch_spec(config.batch_size)}
  stream.close()
  step = step_lib.compile_step(task, config, mesh)
  _, values = step(start.state, jax.device_put(batch, mesh_lib.batch_sharding(mesh)))
  row = next(r for r in metrics.read(stage2[0]) if r["step"] == 4)
  assert row["train/gan_loss"] != 0
  for name, value in values.items():
    np.testing.assert_allclose(value, row[f"train/{name}"], rtol=2e-4, atol=1e-6, err_msg=name)


def test_options_of_the_compiler_reach_it(images):
  config = micro.config("stage1", images)
  text = "--xla_cpu_enable_fast_math=true, xla_dump_to=there,xla_opt_level=1"
  assert step_lib.compiler_options(text) == {
      "xla_cpu_enable_fast_math": True, "xla_dump_to": "there", "xla_opt_level": 1}
  config.compiler_options = "xla_unheard_of=1"
  with pytest.raises(ValueError, match=r"No such compile option.*'xla_unheard_of'.*compiler_options=''"):
    step_lib.compile_step(tasks.make(config), config, mesh_lib.make_mesh(1, 1, jax.devices()[:1]))
  with pytest.raises(ValueError, match="'fast' is not name=value"):
    step_lib.compiler_options("fast")


def test_a_stage_starts_from_the_ema_of_the_one_before(images, stage1, stage2, tmp_path):
  modules, _ = saved.load(str(stage1))
  assert set(modules) == {"vision_tower", "mlp1", "latent_head", "decoder"}
  ema = orbax_io.read_tree(stage1 / "checkpoints/6/ema")
  chex.assert_trees_all_equal(modules["decoder"], ema["decoder"])
  _, start = _first_state(_stage2(images, stage1), tmp_path / "stage2")
  chex.assert_trees_all_equal(start.state.params["decoder"], modules["decoder"])
  teacher = start.state.frozen["teacher"]
  chex.assert_trees_all_equal(teacher["vision_tower"], modules["vision_tower"])
  config = micro.config("stage448", images, init_from=str(stage2[0]))
  _, later = _first_state(config, tmp_path / "stage448")
  chex.assert_trees_all_equal(later.state.frozen["teacher"], teacher)


def test_the_step_compiles_once_across_the_discriminators_start(stage2):
  folder, log = stage2
  compiled = [line for line in log if "Compiling" in line and "train_step" in line]
  assert len(compiled) == 1, compiled
  rows = {r["step"]: r for r in metrics.read(folder)}
  assert rows[3]["train/gan_loss"] == 0
  assert rows[4]["train/gan_loss"] != 0


def test_flops_of_a_step_count_the_discriminator_from_its_start(images):
  config = micro.config("stage2", images, gan__start_step=3, remat__decoder="full")
  before = config.to_dict()
  count = _STEP_FLOPS(config)
  assert config.to_dict() == before, "counting changes nothing of the run"
  assert count(1) == count(3) < count(4)
  config.remat.decoder = "none"
  assert _STEP_FLOPS(config)(4) == count(4), "recomputation is not the model's own work"


def test_a_run_leaves_what_a_user_looks_for(stage1):
  for name in ("metrics.jsonl", "config.json", "model.json", "checkpoints/6", "frozen",
               "samples/step_00000003.png", "samples/step_00000006.png"):
    assert (stage1 / name).exists(), name
  scores = [r for r in metrics.read(stage1) if "eval/images/psnr" in r]
  assert [r["step"] for r in scores] == [3, 6]
  assert all(r["eval/images/count"] == 20 for r in scores)


def test_more_steps_on_the_same_workdir_continue_it(images, stage1, tmp_path):
  shutil.copytree(stage1, tmp_path / "run")
  file = tmp_path / "run" / ledger.FILE
  file.write_text(json.dumps(json.loads(file.read_text()) | {"ended": False}))  # as after a stop
  state = _run(micro.config("stage1", images, total_steps=8), tmp_path / "run")
  assert int(state.step) == 8
  assert sorted(_losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6, 7, 8]
  row = metrics.read(tmp_path / "run")[-1]
  seconds = {k: v for k, v in row.items() if k.startswith(ledger.PREFIX)}
  wall = row["time"] - float((stage1 / "began").read_text())
  assert sum(seconds.values()) == pytest.approx(wall, rel=0.01)
  spent = {"setup", "compile", "step", "evaluation", "samples", "save", "restart"}
  assert {ledger.PREFIX + entry for entry in spent} <= seconds.keys()
  assert ledger.PREFIX + "repeated" not in seconds
  starts = run_files.read(tmp_path / "run")["starts"]
  assert [start["step"] for start in starts] == [0, 6]
  assert starts[1]["seed"] == 0
  assert starts[1]["versions"]["jax"] == jax.__version__


def test_a_damaged_newest_checkpoint_changes_no_bit_of_the_run(images, stage1, tmp_path, caplog):
  run = tmp_path / "run"
  shutil.copytree(stage1, run)
  arrays = max((p for p in (run / "checkpoints/6/params").rglob("d/*")), key=lambda p: p.stat().st_size)
  content = bytearray(arrays.read_bytes())
  content[len(content) // 2] ^= 1
  arrays.write_bytes(content)
  (run / "samples/step_00000003.png").unlink()
  _run(micro.config("stage1", images, sample_every_steps=3), run)
  assert "checkpoint 6 is damaged and was renamed to" in caplog.text
  assert (run / "checkpoints/6.damaged").exists()
  _assert_same_run(run, stage1, 6)
  for step in (3, 6):
    name = f"samples/step_{step:08d}.png"
    assert (run / name).read_bytes() == (stage1 / name).read_bytes()


def _poison(monkeypatch):
  """Makes the reconstruction loss infinite on batches that hold an all-white image."""
  from unilip_jax.losses import reconstruction

  original = reconstruction.l2
  def poisoned(prediction, target):
    white = (target.min((1, 2, 3)) >= 1.0).any()
    return original(prediction, target) + jax.numpy.where(white, jax.numpy.inf, 0.0)

  monkeypatch.setattr(reconstruction, "l2", poisoned)


def test_a_non_finite_batch_stops_the_run_with_step_ids_and_term(
    images, tmp_path, monkeypatch):
  folder = micro.write_images(tmp_path / "images", 39)
  Image.new("RGB", (80, 80), "white").save(folder / "white.png")
  _poison(monkeypatch)
  micro.one_device(monkeypatch)
  config = micro.config("stage1", folder, total_steps=5, checkpoint_every_steps=1)
  with pytest.raises(late_metrics.NonFiniteError) as stopped:
    _run(config, tmp_path / "run")
  message = str(stopped.value)
  assert "reconstruction_loss" in message
  step = int(message.split("step ")[1].split(":")[0])
  first = (step - 1) * config.batch_size
  assert str(list(range(first, first + config.batch_size))) in message
  saved = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]
  assert max(saved, default=0) == step - 1, "the bad step must not be saved"
  config.stop_on_nonfinite = False
  state = _run(config, tmp_path / "skipped")
  assert int(state.step) == 4, "the batch is skipped and the state kept"
  chex.assert_tree_all_finite(state.params)


def test_another_architecture_in_the_workdir_is_refused(images, stage1):
  with pytest.raises(ValueError, match=r"does not fit this config .*another --workdir"):
    _first_state(micro.config("stage2", images), stage1)


def test_missing_weights_say_what_to_download(images, tmp_path):
  config = micro.config("stage1", images, init_from=str(tmp_path / "weights/internvl3-1b"))
  with pytest.raises(FileNotFoundError, match=r"(?s)InternVL3-1B.*convert import.*:tiny"):
    _run(config, tmp_path / "run")


def test_weights_of_another_size_are_refused_with_both_shapes(images, stage1, tmp_path, monkeypatch):
  small = presets.get("tiny")
  wide = dataclasses.replace(
      small, tokenizer=dataclasses.replace(small.tokenizer, llm_width=32))
  monkeypatch.setattr(presets, "get", lambda size: wide)
  with pytest.raises(ValueError, match=r"mlp1/fc1/kernel: weights \(128, 24\), model \(128, 32\)"):
    _first_state(micro.config("stage1", images, init_from=str(stage1)), tmp_path)


def test_frozen_weights_are_saved_once_and_not_per_checkpoint(stage1):
  names = orbax_io.saved_shapes(stage1 / "checkpoints/6/params")
  assert not any(path.startswith("vision_tower") for path in names)
  frozen = orbax_io.read_tree(stage1 / "frozen")
  assert set(frozen) == {"vision_tower", "mlp1"}
  assert tree.count(frozen) > 0
