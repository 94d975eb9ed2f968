"""Rates exclude compilation and pauses; an impossible MFU is not reported."""

import jax
import pytest

from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import progress as progress_lib


class _Clock:
  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(progress_lib.time, "monotonic", lambda: self.now)


def _progress(monkeypatch, step_flops=None, peak=None):
  monkeypatch.setattr(progress_lib.flops, "peak", lambda devices: (peak, "test"))
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:2])
  return progress_lib.Progress(100, 0, batch_size=32, step_flops=step_flops, mesh=mesh)


def test_rates_exclude_the_first_step_and_pauses(monkeypatch):
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
