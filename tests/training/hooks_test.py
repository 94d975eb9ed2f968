"""Hooks act at the steps that are due, also when a kill came before they could."""

import types

import jax
import numpy as np
import pytest

from unilip_jax.training import hooks, samples


def _run(step, every=3, total=9):
  config = types.SimpleNamespace(sample_every_steps=every, total_steps=total)
  progress = types.SimpleNamespace(paused=lambda: jax.default_device(None))
  writer = types.SimpleNamespace(write_image=lambda *_: None)
  return hooks.Run(config=config, state="weights", step=step, position=0, writer=writer, progress=progress,
                   late=None)


@pytest.mark.parametrize(("step", "expected"), [(3, [3]), (9, [9]), (4, []), (0, []), (6, [])])
def test_a_grid_that_a_kill_prevented_is_made_on_resume(tmp_path, step, expected):
  grids = []

  def sample(step, params):
    assert params == "weights"
    grids.append(step)
    return b"png"

  (tmp_path / "samples").mkdir()
  (tmp_path / "samples/step_00000006.png").write_bytes(b"png")
  hook = hooks.Samples(sample, lambda step: samples.exists(str(tmp_path), step), lambda state: state)
  hook.at_start(_run(step))
  assert grids == expected


def test_a_grid_is_written_atomically_under_its_step(tmp_path, monkeypatch):
  task = types.SimpleNamespace(make_preview=lambda mesh: lambda params, batch: {
      "target": np.zeros((2, 4, 4, 3), np.uint8)})
  monkeypatch.setattr(samples, "_first_batch", lambda config, workdir: {"_mask": np.ones(2, bool)})
  sample = samples.make(types.SimpleNamespace(sample_count=2), task, None, str(tmp_path))
  assert not samples.exists(str(tmp_path), 3)
  png = sample(3, None)
  assert samples.exists(str(tmp_path), 3)
  assert {p.name: p.read_bytes() for p in (tmp_path / "samples").iterdir()} == {"step_00000003.png": png}
