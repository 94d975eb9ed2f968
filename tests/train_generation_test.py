"""Runs of the understanding and generation stages: chained, resumed, scored, sampled."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest

from tests import micro, saved
from tests.scores import made_up_tables
from unilip_jax import train
from unilip_jax.models import presets
from unilip_jax.training import metrics
from unilip_jax.weights import language, orbax_io


@pytest.fixture(scope="module", autouse=True)
def micro_preset():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    micro.one_device(patch)
    micro.skip_flops(patch)
    yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """One workdir whose rendered scenes all runs share."""
  return tmp_path_factory.mktemp("generation")


def _config(stage, **fields):
  return micro.text_config(stage, **dict(
      batch_size=16, data__part_multiple=8, total_steps=4, checkpoint_every_steps=2,
      log_every_steps=1) | fields)


@pytest.fixture(scope="module")
def mllm(workdir):
  """Folder of a scored step of understanding."""
  folder = workdir / "mllm"
  train.train(_config("tiny_mllm", total_steps=1, eval__max_examples=8, eval__every_steps=1,
                      eval__sets=(("questions", "questions", "shapes", "test"),
                                  _benchmark("mmbench", workdir))), str(folder))
  return folder


def _benchmark(name, workdir):
  """A row of `eval.sets`: a part of a made-up copy of a benchmark of understanding."""
  return (name, "benchmark", name, str(made_up_tables.make(name, workdir / name)),
          {"max_items": 8, "max_new_tokens": 2, "max_tiles": 1})


@pytest.fixture(scope="module")
def gen1(workdir, mllm):
  """Folder of a step of gen1 that started from it."""
  train.train(_config("gen1", total_steps=1, init_from=str(mllm), eval__every_steps=1,
                      eval__sets=(_benchmark("mmmu", workdir),)), str(workdir / "gen1"))
  return workdir / "gen1"


@pytest.fixture(scope="module")
def gen2(workdir, gen1):
  """Folder of four steps of gen2 that started from it, with samples and scores."""
  train.train(_config(
      "gen2", init_from=str(gen1), sample_every_steps=4, sample__steps=2,
      sample_set=("edit", "shapes", "test", {"count": 8}), eval__every_steps=4, eval__max_examples=8,
      eval__sets=(("t2i", "t2i", "shapes", "test"), ("edits", "edits", "shapes", "test"))),
      str(workdir / "gen2"))
  return workdir / "gen2"


def _losses(workdir):
  return {r["step"]: r["train/loss"] for r in metrics.read(workdir) if "train/loss" in r}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(gen1, gen2, tmp_path):
  parts = tmp_path / "parts"  # as if the run had ended after its second step
  shutil.copytree(gen2, parts)
  shutil.rmtree(parts / "checkpoints/4")
  train.train(_config("gen2", init_from=str(gen1)), str(parts))
  for item in ("params", "optimizer"):
    a, b = (orbax_io.read_tree(w / "checkpoints/4" / item) for w in (gen2, parts))
    chex.assert_trees_all_equal(a, b)
  assert _losses(gen2) == _losses(parts)
  assert sorted(_losses(parts)) == [1, 2, 3, 4]


def test_published_sizes_never_start_from_random_weights(mllm, tmp_path, monkeypatch):
  micro_get = presets.get
  monkeypatch.setattr(presets, "get", lambda size: micro_get("tiny"))
  config = _config("gen2", total_steps=0, init_from=str(mllm))
  config.size = "1b"
  with pytest.raises(FileNotFoundError, match=r"weights of dit, which init_from=.*docs/weights.md"):
    train.train(config, str(tmp_path))


def test_understanding_is_scored(mllm):
  scores = [r for r in metrics.read(mllm) if "eval/questions/accuracy" in r]
  assert len(scores) == 1
  assert 0 <= scores[0]["eval/questions/accuracy"] <= 1
  assert (scores[0]["eval/mmbench/answers"], scores[0]["eval/mmbench/n"]) == (6, 3)  # two rotations each
  assert 0 <= scores[0]["eval/mmbench/score"] <= 1


def test_generation_stages_answer_with_their_frozen_language_model(gen1):
  scores, = (r for r in metrics.read(gen1) if "eval/mmmu/score" in r)
  assert scores["eval/mmmu/answers"] == scores["eval/mmmu/n"] == 9
  record, = (gen1 / "benchmarks/mmmu").rglob("answers/make.json")
  assert "questions have several images" in json.loads(record.read_text())["tiling"]


def test_gen1_starts_from_understanding(mllm, gen1):
  first, _ = saved.load(str(gen1))
  before, _ = saved.load(str(mllm))
  half = lambda x: np.asarray(jax.numpy.asarray(x, "bfloat16").astype("float32"))
  np.testing.assert_array_equal(
      np.asarray(first["llm"]["embedding"], np.float32), half(before["llm"]["embedding"]))
  # The connector started as the LLM's last layers and has made one small step.
  connector, llm = (tree["layers"]["attn"]["qkv"]["kernel"] for tree in (
      first["connector"], before["llm"]["stack"]))
  assert np.abs(connector - llm[-2:]).max() < 0.01


def test_gen2_leaves_scores_and_grids(gen2):
  assert (gen2 / "samples/step_00000004.png").exists()
  row = next(r for r in metrics.read(gen2) if "eval/t2i/score" in r)
  assert row["eval/t2i/count"] == row["eval/edits/count"] == 8
  second, model = saved.load(str(gen2))
  assert set(second) >= {"queries", "connector", "projector", "dit", "llm", "decoder"}
  assert model["generate"]["condition"] == "both"


def test_a_run_keeps_its_tokenizer(gen2, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  file, system = language.language_of(str(gen2), {})
  assert file == str(gen2 / "tokenizer.json")
  assert system == ""
  assert json.loads((gen2 / "config.json").read_text())["tokenizer_sha256"]
  config = _config("gen2", text__tokenizer=str(tmp_path / "other.json"))
  (tmp_path / "other.json").write_text((gen2 / "tokenizer.json").read_text() + "\n")
  with pytest.raises(ValueError, match="differs from"):
    train.train(config, str(gen2))
