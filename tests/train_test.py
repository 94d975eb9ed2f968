"""Runs: bit-identical resume after any end, one compilation, clear stops."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import pytest

from tests import micro, saved
from unilip_jax import tasks, train
from unilip_jax.common import tree
from unilip_jax.models import presets
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import checkpoint, initial_state, late_metrics, metrics
from unilip_jax.training import step as step_lib
from unilip_jax.weights import orbax_io

_ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def micro_preset(monkeypatch):
  preset = micro.preset()
  monkeypatch.setattr(presets, "get", lambda size: preset)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return micro.write_images(tmp_path_factory.mktemp("train") / "images")


def _start(stage, images, workdir, **fields):
  """A run as a process of its own."""
  env = os.environ | {"PYTHONPATH": str(_ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
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
    jax.tree.map(np.testing.assert_array_equal, left, right)
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
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  _finish(_start("stage2", images, whole, total_steps=12))
  _end(signal.SIGKILL, images, workdir, checkpoint=3)
  log = _end(signal.SIGTERM, images, workdir, checkpoint=6)
  assert "rerun the same command to continue" in log
  _finish(_start("stage2", images, workdir, total_steps=12))
  _assert_same_run(workdir, whole, 12)


def _end(how, images, workdir, checkpoint):
  """Sends a signal to a run one step or more after a checkpoint; returns what it printed."""
  process = _start("stage2", images, workdir, total_steps=12, sleep=0.5)
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


def test_restoring_on_another_mesh_gives_the_same_next_loss(micro_preset, images, tmp_path):
  config = micro.config("stage2", images, total_steps=3, mesh__min_shard_size=16, mesh__fsdp=1)
  _run(config, tmp_path)
  seen = []
  for data, fsdp, devices in ((8, 1, 8), (2, 4, 8), (1, 1, 1)):
    mesh = mesh_lib.make_mesh(data, fsdp, jax.devices()[:devices])
    task = tasks.make(config)
    manager = checkpoint.Manager(str(tmp_path), keep=None, read_only=True)
    start = initial_state.restore_or_init(task, config, manager, mesh)
    assert start.step == 3
    assert start.position == 24
    split = [s for s in jax.tree.leaves(jax.tree.map(lambda x: x.sharding.spec, start.state.params))]
    assert any("fsdp" in str(s) for s in split) == (fsdp > 1)
    batch = {"image": np.asarray(np.random.default_rng(0).integers(
        0, 256, (8, micro.IMAGE_SIZE, micro.IMAGE_SIZE, 3)), np.uint8),
             "_mask": np.ones(8, np.bool_)}
    step = step_lib.compile_step(task, config, mesh)
    _, values = step(start.state, jax.device_put(batch, mesh_lib.batch_sharding(mesh)))
    seen.append({k: float(v) for k, v in values.items()})
  for other in seen[1:]:
    for name, value in seen[0].items():
      np.testing.assert_allclose(other[name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def test_options_of_the_compiler_reach_it(micro_preset, images):
  config = micro.config("stage1", images)
  text = "--xla_cpu_enable_fast_math=true, xla_dump_to=there,xla_opt_level=1"
  assert step_lib.compiler_options(text) == {
      "xla_cpu_enable_fast_math": True, "xla_dump_to": "there", "xla_opt_level": 1}
  config.compiler_options = "xla_unheard_of=1"
  with pytest.raises(ValueError, match=r"No such compile option.*'xla_unheard_of'.*compiler_options=''"):
    step_lib.compile_step(tasks.make(config), config, mesh_lib.make_mesh(1, 1, jax.devices()[:1]))
  with pytest.raises(ValueError, match="'fast' is not name=value"):
    step_lib.compiler_options("fast")


def test_stage_2_starts_from_the_average_of_stage_1(micro_preset, images, tmp_path):
  _run(micro.config("stage1", images, total_steps=3), tmp_path / "stage1")
  modules, _ = saved.load(str(tmp_path / "stage1"))
  assert set(modules) == {"vision_tower", "mlp1", "latent_head", "decoder"}
  ema = orbax_io.read_tree(tmp_path / "stage1/checkpoints/3/ema")
  jax.tree.map(np.testing.assert_array_equal, modules["decoder"], ema["decoder"])
  config = micro.config("stage2", images, total_steps=0, init_from=str(tmp_path / "stage1"))
  state = _run(config, tmp_path / "stage2")
  jax.tree.map(np.testing.assert_array_equal, state.params["decoder"], modules["decoder"])
  teacher = state.frozen["teacher"]
  jax.tree.map(np.testing.assert_array_equal, teacher["vision_tower"], modules["vision_tower"])
  config = micro.config("stage448", images, total_steps=2, init_from=str(tmp_path / "stage2"))
  later = _run(config, tmp_path / "stage448")
  jax.tree.map(np.testing.assert_array_equal, later.frozen["teacher"], teacher)


def test_the_step_compiles_once_across_the_discriminators_start(
    micro_preset, images, tmp_path, caplog):
  with jax.log_compiles(), caplog.at_level("WARNING"):
    _run(micro.config("stage2", images, total_steps=6, gan__start_step=3), tmp_path)
  compiled = [r.getMessage() for r in caplog.records
              if "Compiling" in r.getMessage() and "train_step" in r.getMessage()]
  assert len(compiled) == 1, compiled
  rows = {r["step"]: r for r in metrics.read(tmp_path)}
  assert rows[3]["train/gan_loss"] == 0
  assert rows[4]["train/gan_loss"] != 0


def test_flops_of_a_step_count_the_discriminator_from_its_start(micro_preset, images):
  config = micro.config("stage2", images, gan__start_step=3, remat__decoder="full")
  before = config.to_dict()
  count = step_lib.step_flops(config)
  assert config.to_dict() == before, "counting changes nothing of the run"
  assert count(1) == count(3) < count(4)
  config.remat.decoder = "none"
  assert step_lib.step_flops(config)(4) == count(4), "recomputation is not the model's own work"


def test_a_run_leaves_what_a_user_looks_for(micro_preset, images, tmp_path):
  config = micro.config("stage1", images, sample_every_steps=3, eval__every_steps=3)
  _run(config, tmp_path)
  for name in ("metrics.jsonl", "config.json", "model.json", "checkpoints/6", "frozen",
               "samples/step_00000003.png", "samples/step_00000006.png"):
    assert (tmp_path / name).exists(), name
  scores = [r for r in metrics.read(tmp_path) if "eval/images/psnr" in r]
  assert [r["step"] for r in scores] == [3, 6]
  assert all(r["eval/images/count"] == 20 for r in scores)


def test_more_steps_on_the_same_workdir_continue_it(micro_preset, images, tmp_path):
  _run(micro.config("stage1", images, total_steps=3), tmp_path)
  state = _run(micro.config("stage1", images, total_steps=5), tmp_path)
  assert int(state.step) == 5
  assert sorted(_losses(tmp_path)) == [1, 2, 3, 4, 5]


def _poison(monkeypatch):
  """Makes the reconstruction loss infinite on batches that hold an all-white image."""
  from unilip_jax.losses import reconstruction

  original = reconstruction.l2
  def poisoned(prediction, target):
    white = (target.min((1, 2, 3)) >= 1.0).any()
    return original(prediction, target) + jax.numpy.where(white, jax.numpy.inf, 0.0)

  monkeypatch.setattr(reconstruction, "l2", poisoned)


def test_a_non_finite_batch_stops_the_run_with_step_ids_and_term(
    micro_preset, images, tmp_path, monkeypatch):
  folder = micro.write_images(tmp_path / "images", 39)
  Image.new("RGB", (80, 80), "white").save(folder / "white.png")
  _poison(monkeypatch)
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
  state = _run(config, tmp_path / "passed_over")
  assert int(state.step) == 4, "the batch is passed over and the state kept"
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_another_architecture_in_the_workdir_is_refused(micro_preset, images, tmp_path):
  _run(micro.config("stage1", images, total_steps=1), tmp_path)
  with pytest.raises(ValueError, match="does not fit this config"):
    _run(micro.config("stage2", images, total_steps=2), tmp_path)


def test_missing_weights_say_what_to_download(micro_preset, images, tmp_path):
  config = micro.config("stage1", images, init_from=str(tmp_path / "weights/internvl3-1b"))
  with pytest.raises(FileNotFoundError, match=r"(?s)InternVL3-1B.*convert import.*:tiny"):
    _run(config, tmp_path / "run")


def test_weights_of_another_size_are_refused_with_both_shapes(
    micro_preset, images, tmp_path, monkeypatch):
  _run(micro.config("stage1", images, total_steps=1), tmp_path / "a")
  small = presets.get("tiny")
  wide = dataclasses.replace(
      small, tokenizer=dataclasses.replace(small.tokenizer, llm_width=32))
  monkeypatch.setattr(presets, "get", lambda size: wide)
  with pytest.raises(ValueError, match=r"mlp1/fc1/kernel: weights \(128, 24\), model \(128, 32\)"):
    _run(micro.config("stage1", images, init_from=str(tmp_path / "a")), tmp_path / "b")


def test_frozen_weights_are_saved_once_and_not_per_checkpoint(micro_preset, images, tmp_path):
  _run(micro.config("stage1", images, total_steps=6), tmp_path)
  saved = orbax_io.saved_shapes(tmp_path / "checkpoints/6/params")
  assert not any(path.startswith("vision_tower") for path in saved)
  frozen = orbax_io.read_tree(tmp_path / "frozen")
  assert set(frozen) == {"vision_tower", "mlp1"}
  assert tree.count(frozen) > 0
