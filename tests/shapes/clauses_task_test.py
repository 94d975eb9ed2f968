"""The task that pretrains the tiny DiT: trains on text alone, and saves a DiT that gen1 can start from."""

import json
import math

import numpy as np
import pytest

from tests import micro, saved
from unilip_jax import tasks, train
from unilip_jax.shapes import clauses_task
from unilip_jax.training import metrics


def _config(tmp_path, **fields):
  return micro.text_config(
      "tiny_sana", image_size=64, batch_size=8, total_steps=2, checkpoint_every_steps=2,
      data__render_dir=str(tmp_path / "data"), **fields)


def test_a_run_trains_dit_and_clauses_and_saves_the_dit_for_later_stages(tmp_path, monkeypatch):
  micro.install(monkeypatch)
  config = _config(tmp_path)
  assert isinstance(tasks.make(config), clauses_task.PretrainDit)
  start = tasks.make(config).module_shapes
  train.train(config, str(tmp_path / "run"))
  losses = [row["train/loss"] for row in metrics.read(tmp_path / "run") if "train/loss" in row]
  assert len(losses) == 2
  assert all(math.isfinite(loss) for loss in losses)
  assert set(json.loads((tmp_path / "run" / "model.json").read_text())["modules"]) == {"dit"}
  modules, _ = saved.load(tmp_path / "run")
  assert set(modules) == set(start)
  assert {"dit", "clauses"} <= set(modules)
  assert np.abs(modules["clauses"]["embedding"]).max() > 0


@pytest.mark.parametrize("fields", [{"data__edit_share": 0.5}, {"sample_every_steps": 10}])
def test_settings_that_need_an_llm_are_refused(tmp_path, fields):
  with pytest.raises(ValueError, match="has no LLM"):
    tasks.make(_config(tmp_path, **fields))
