"""metrics.jsonl has each step once across restarts; rates leave out compilation and pauses."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import metrics
from unilip_jax.training import progress as progress_lib


def _steps(workdir):
  return [json.loads(line)["step"] for line in (workdir / metrics.FILE).read_text().splitlines()]


def test_rows_are_readable_while_the_run_goes_on(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(10, {"train/loss": jnp.float32(0.5), "rate/mfu": 0.25})
    (row,) = metrics.read(tmp_path)
    assert (row["step"], row["train/loss"], row["rate/mfu"]) == (10, 0.5, 0.25)
    assert abs(row["time"] - time.time()) < 60


def test_resume_drops_the_steps_that_will_be_made_again(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    for step in (10, 20, 30, 40):
      writer.write(step, {"train/loss": step})
  with metrics.Writer(tmp_path, start_step=20) as writer:
    assert _steps(tmp_path) == [10, 20]
    for step in (30, 40, 50):
      writer.write(step, {"train/loss": -step})
  assert _steps(tmp_path) == [10, 20, 30, 40, 50]
  assert [row["train/loss"] for row in metrics.read(tmp_path)] == [10, 20, -30, -40, -50]


def test_torn_last_line_of_a_killed_run_is_dropped(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(1, {"train/loss": 1.0})
  with (tmp_path / metrics.FILE).open("a") as f:
    f.write('{"step": 2, "train/lo')
  assert [row["step"] for row in metrics.read(tmp_path)] == [1]
  with metrics.Writer(tmp_path, start_step=5) as writer:
    writer.write(6, {"train/loss": 1.0})
  assert _steps(tmp_path) == [1, 6]


def test_training_and_evaluation_of_one_step_read_as_one_row(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(3, {"train/loss": 1.0})
    assert not writer.has_evaluation(3)
    writer.write(3, {"eval/shapes/psnr": 20.0})
    assert writer.has_evaluation(3)
  (row,) = metrics.read(tmp_path)
  assert row["train/loss"] == 1.0
  assert row["eval/shapes/psnr"] == 20.0
  with metrics.Writer(tmp_path, start_step=3) as writer:
    assert writer.has_evaluation(3)
  with metrics.Writer(tmp_path, start_step=2) as writer:
    assert not writer.has_evaluation(3)


def test_non_finite_values_survive_as_valid_json(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(1, {"a": np.float32("nan"), "b": np.float32("inf"), "c": -np.inf})

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  json.loads((tmp_path / metrics.FILE).read_text(), parse_constant=refuse)
  (row,) = metrics.read(tmp_path)
  assert np.isnan(row["a"])
  assert (row["b"], row["c"]) == (np.inf, -np.inf)


def test_tensorboard_gets_the_scalars(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(7, {"train/loss": 0.125})
  (file,) = (tmp_path / "tensorboard").iterdir()
  data, offset, found = file.read_bytes(), 0, []
  while offset < len(data):  # TFRecord: uint64 length, crc, payload, crc
    length = int.from_bytes(data[offset:offset + 8], "little")
    event = event_pb2.Event.FromString(data[offset + 12:offset + 12 + length])
    found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    offset += 16 + length
  assert (7, "train/loss", 0.125) in found


def test_missing_run_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
    metrics.read(tmp_path)


class _Clock:
  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(progress_lib.time, "monotonic", lambda: self.now)


def _progress(monkeypatch, step_flops=None, peak=None):
  monkeypatch.setattr(progress_lib.flops, "peak", lambda devices: (peak, "test"))
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:2])
  return progress_lib.Progress(100, 0, batch_size=32, step_flops=step_flops, mesh=mesh)


def test_rates_leave_out_the_first_step_and_pauses(monkeypatch):
  clock = _Clock(monkeypatch)
  with _progress(monkeypatch, step_flops=lambda step: 1e9, peak=1e10) as progress:
    clock.now += 60  # compilation
    progress.update(1, {"loss": 1.0})
    assert progress.rates() == {}
    for step in range(2, 6):
      clock.now += 0.5
      progress.update(step, {"loss": 1.0})
    with progress.paused():
      clock.now += 1000
    clock.now += 0.5
    progress.update(6, {"loss": 1.0})
    rates = progress.rates()
    assert rates["rate/step_seconds"] == pytest.approx(0.5)
    assert rates["rate/images_per_second"] == pytest.approx(64)
    assert rates["rate/mfu"] == pytest.approx(0.2)
    assert progress.rates() == {}  # a window ends where the next one begins


def test_impossible_mfu_is_not_reported(monkeypatch):
  clock = _Clock(monkeypatch)
  with _progress(monkeypatch, step_flops=lambda step: 1e9, peak=1e8) as progress:
    for step in (1, 2):
      clock.now += 1
      progress.update(step, {})
    assert "rate/mfu" not in progress.rates()


def test_unknown_peak_gives_rates_without_mfu(monkeypatch):
  clock = _Clock(monkeypatch)
  with _progress(monkeypatch, step_flops=lambda step: 1e9) as progress:
    for step in (1, 2):
      clock.now += 1
      progress.update(step, {})
    assert set(progress.rates()) == {"rate/images_per_second", "rate/step_seconds"}
