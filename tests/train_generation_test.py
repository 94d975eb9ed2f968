"""Whole runs of the understanding and generation stages: chained, resumed, scored, sampled."""

import jax
import numpy as np
import pytest

from tests import micro, saved
from unilip_jax import train
from unilip_jax.models import presets
from unilip_jax.training import metrics
from unilip_jax.weights import orbax_io


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """One workdir whose rendered scenes all runs share."""
  return tmp_path_factory.mktemp("generation")


@pytest.fixture
def micro_preset(monkeypatch):
  micro.install(monkeypatch)


def _config(stage, **fields):
  return micro.text_config(stage, **dict(
      batch_size=16, data__part_multiple=8, total_steps=4, checkpoint_every_steps=2,
      log_every_steps=1) | fields)


def _losses(workdir):
  return {r["step"]: r["train/loss"] for r in metrics.read(workdir) if "train/loss" in r}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(micro_preset, workdir):
  stage, whole, parts = "gen2", workdir / "whole", workdir / "parts"
  # A constant rate: the cosine would make the shorter run another one.
  rate = dict(optimizer__lr=1e-3, optimizer__end_lr=1e-3, optimizer__warmup_steps=0)
  train.train(_config(stage, **rate), str(whole))
  train.train(_config(stage, total_steps=2, **rate), str(parts))
  train.train(_config(stage, **rate), str(parts))
  for item in ("params", "optimizer"):
    a, b = (orbax_io.read_tree(w / "checkpoints/4" / item) for w in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, a, b)
  assert _losses(whole) == _losses(parts)


def test_published_sizes_never_start_from_random_weights(micro_preset, workdir, monkeypatch):
  micro_get = presets.get
  monkeypatch.setattr(presets, "get", lambda size: micro_get("tiny"))
  tiny = workdir / "tokenizer"
  train.train(_config("tiny_mllm", total_steps=0), str(tiny))
  config = _config("gen2", total_steps=0, init_from=str(tiny))
  config.size = "1b"
  with pytest.raises(FileNotFoundError, match=r"weights of dit, which init_from=.*docs/weights.md"):
    train.train(config, str(workdir / "gen2-1b"))


def test_stages_chain_and_leave_scores_and_grids(micro_preset, workdir):
  train.train(_config("tiny_mllm", total_steps=1, eval__max_examples=8, eval__every_steps=1,
                      eval__sets=(("questions", "questions", "shapes", "test"),)),
              str(workdir / "mllm"))
  scores = [r for r in metrics.read(workdir / "mllm") if "eval/questions/accuracy" in r]
  assert len(scores) == 1
  assert 0 <= scores[0]["eval/questions/accuracy"] <= 1
  train.train(_config("gen1", total_steps=1, init_from=str(workdir / "mllm")),
              str(workdir / "gen1"))
  first, _ = saved.load(str(workdir / "gen1"))
  mllm, _ = saved.load(str(workdir / "mllm"))
  half = lambda x: np.asarray(jax.numpy.asarray(x, "bfloat16").astype("float32"))
  np.testing.assert_array_equal(
      np.asarray(first["llm"]["embedding"], np.float32), half(mllm["llm"]["embedding"]))
  # The connector started as the LLM's last layers and has made one small step.
  ours, theirs = (tree["layers"]["attn"]["qkv"]["kernel"] for tree in (
      first["connector"], mllm["llm"]["stack"]))
  assert np.abs(ours - theirs[-2:]).max() < 0.01
  train.train(_config(
      "gen2", total_steps=1, init_from=str(workdir / "gen1"), sample_every_steps=1, sample__steps=2,
      sample_set=("edit", "shapes", "test", {"count": 8}), eval__every_steps=1, eval__max_examples=8,
      eval__sets=(("t2i", "t2i", "shapes", "test"), ("edits", "edits", "shapes", "test"))),
      str(workdir / "gen2"))
  assert (workdir / "gen2/samples/step_00000001.png").exists()
  row = next(r for r in metrics.read(workdir / "gen2") if "eval/t2i/score" in r)
  assert row["eval/t2i/count"] == row["eval/edits/count"] == 8
  second, model = saved.load(str(workdir / "gen2"))
  assert set(second) >= {"queries", "connector", "projector", "dit", "llm", "decoder"}
  assert model["generate"]["condition"] == "both"
