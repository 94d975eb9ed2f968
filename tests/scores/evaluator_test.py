"""A benchmark is an evaluation set: images of the weights at hand, scored when they are judged."""

import types

import ml_collections
import numpy as np
import pytest

from tests.scores import judge_server, made_up, made_up_tables
from unilip_jax.configs import eval_geneval, eval_imgedit, eval_wise
from unilip_jax.evals import base as evals_base
from unilip_jax.models import presets
from unilip_jax.scores import base, evaluator, provenance
from unilip_jax.scores import result as result_lib
from unilip_jax.tasks import base as tasks_base


class _Sampler:
  image_size, latent_shape, few_step = 8, (2, 2, 1), ""

  def prompt_length(self, prompt, *, editing):
    return 32

  def generate(self, params, prompts, options, *, latents):
    values = [sum(map(ord, p)) + 1e3 * z.sum() + params["a"][0] for p, z in zip(prompts, latents)]
    return [np.full((8, 8, 3), int(v) % 256, np.uint8) for v in values]


class _Task(tasks_base.GeneratesImages):
  def make_sampler(self, batch_size, mesh):
    return _Sampler()


_Task.__abstractmethods__ = frozenset()  # what an evaluator does not call


def _evaluator(tmp_path, name, copy, task=None, **options):
  config = ml_collections.ConfigDict({
      "eval": {"batch_size": 5, "seed": 42, "max_examples": 0}, "image_size": 8, "dtype": "float32",
      "text": {"tokenizer": "shapes", "system": ""},
      "sample": {"steps": 20, "guidance": 4.5, "solver": "dpm"}, "stage": "gen3"})
  row = evals_base.read_row(("set", "benchmark", name, str(copy.items), options))
  return evaluator.make_evaluator(
      row, evals_base.Context(config, task or _Task(), None, str(tmp_path / "run")))


def _params(value):
  return {"a": np.full((3,), value, np.float32)}


def test_detector_results_next_to_the_images_are_scored_for_the_weights_that_made_them(tmp_path):
  copy = made_up.make("geneval", tmp_path / "items")
  evaluate = _evaluator(tmp_path, "geneval", copy)
  assert evaluate(_params(1.0)) == {"set/images": 48.0}
  folder, = (tmp_path / "run/benchmarks/set").iterdir()
  assert len(list(folder.rglob("*.png"))) == 48
  (folder / "judged").mkdir()
  provenance.write_lines(folder / "judged/results.jsonl", made_up.detect(
      copy.items, folder / "images"))
  scores = evaluate(_params(1.0))
  assert scores["set/n"] == 48
  assert scores["set/missing"] == 0
  result = result_lib.read(str(folder / "judged"))
  assert scores["set/score"] == result["score"]
  assert result["make"]["weights_fingerprint"] == folder.name
  assert result["make"]["differs_from_official"] == ["size", "precision"]
  assert evaluate(_params(2.0)) == {"set/images": 48.0}  # other weights, other images
  assert len(list((tmp_path / "run/benchmarks/set").iterdir())) == 2


def test_a_subset_is_spaced_evenly_and_judged_by_the_stated_endpoint(tmp_path):
  copy = made_up.make("wise", tmp_path / "items")
  with judge_server.Server(lambda body, number: judge_server.Answer(copy.answer(body))) as server:
    evaluate = _evaluator(tmp_path, "wise", copy, max_items=6, judge_url=server.url,
                          judge_prompts=str(copy.prompts))
    scores = evaluate(_params(1.0))
    assert evaluate(_params(1.0)) == scores
  assert len(server.seen) == 7
  assert (scores["set/images"], scores["set/n"]) == (7.0, 7.0)
  assert 0 < scores["set/score"] <= 1
  names = {p.stem for p in (tmp_path / "run").rglob("*.png")}
  assert names == {"1", "3", "401", "568", "701", "801", "901"}


def test_shapes_are_scored_without_judge_or_detector(tmp_path):
  copy = types.SimpleNamespace(items="test:6")
  scores = _evaluator(tmp_path, "shapes", copy)(_params(1.0))
  assert (scores["set/images"], scores["set/n"], scores["set/missing"]) == (6, 6, 0)
  assert scores["set/score"] == 0.0  # images of one colour
  assert len(list((tmp_path / "run").rglob("images/results.json"))) == 1


class _Chat:
  """Replaces infer.chat.Chat: answers depend on images, question and weights."""

  asked = 0

  def __init__(self, model, text, *, image_size, batch_size, mesh):
    del model, text, image_size, batch_size, mesh

  def answer(self, params, images, conversations, options, *, seed, system, max_tiles):
    del options, seed, system, max_tiles
    _Chat.asked += len(images)
    return made_up_tables.Answerer().answers(
        [[*each, np.float32(params["a"])] for each in images], [q for q, in conversations],
        max_new_tokens=1, max_tiles=1)


@pytest.fixture
def chat(monkeypatch):
  monkeypatch.setattr(evaluator.chat_lib, "Chat", _Chat)
  monkeypatch.setattr(evaluator.answering, "find_task", lambda name, context: (
      types.SimpleNamespace(model=None, preset=presets.get("tiny")), lambda params: params))
  monkeypatch.setattr(_Chat, "asked", 0)


@pytest.mark.parametrize("name", made_up_tables.NAMES)
def test_answers_of_the_weights_at_hand_are_scored(tmp_path, chat, name):
  copy = types.SimpleNamespace(items=made_up_tables.make(name, tmp_path / "items"))
  count = len(base.find(name).read_items(str(copy.items)))
  evaluate = _evaluator(tmp_path, name, copy)
  scores = evaluate(_params(1.0))
  assert evaluate(_params(1.0)) == scores
  assert _Chat.asked == count  # the second time none is asked again
  assert (scores["set/answers"], scores["set/missing"], scores["set/malformed"]) == (count, 0, 0)
  folder, = (tmp_path / "run/benchmarks/set").iterdir()
  result = result_lib.read(str(folder / "answers"))
  assert scores["set/score"] == result["score"]
  assert result["make"]["weights_fingerprint"] == folder.name
  assert result["make"]["max_tiles"] == (12 if name == "mmmu" else 6)
  assert "images by tiles: " in result["make"]["tiling"]
  evaluate(_params(2.0))
  assert _Chat.asked == 2 * count


@pytest.mark.parametrize(("name", "answers", "counted"), [
    ("mmbench", 6, 3), ("mmvp", 6, 6), ("seed", 6, 6)])
def test_a_subset_of_answers_takes_what_counts_together(tmp_path, chat, name, answers, counted):
  copy = types.SimpleNamespace(items=made_up_tables.make(name, tmp_path / "items"))
  scores = _evaluator(tmp_path, name, copy, max_items=5, max_tiles=1)(_params(1.0))
  assert (scores["set/answers"], scores["set/n"]) == (answers, counted)
  assert {len(unit) for unit in base.find("mme").units(base.find("mme").read_items(
      str(made_up_tables.make("mme", tmp_path / "mme"))))} == {2}
  assert "set/missing" not in scores
  assert "set/score" in scores


def test_answers_to_mmvet_are_judged_by_the_stated_endpoint(tmp_path, chat):
  copy = made_up.make("mmvet", tmp_path / "items")
  assert _evaluator(tmp_path, "mmvet", copy, max_items=5)(_params(1.0)).keys() == {"set/answers"}
  with judge_server.Server(lambda body, number: judge_server.Answer("1.0")) as server:
    scores = _evaluator(tmp_path, "mmvet", copy, max_items=5, judge_url=server.url,
                        judge_prompts=str(copy.prompts))(_params(1.0))
  assert len(server.seen) == scores["set/answers"] == scores["set/n"]
  assert scores["set/score"] == 1.0  # questions that were not asked do not count 0


def test_a_task_without_a_language_model_answers_nothing(tmp_path):
  copy = types.SimpleNamespace(items=made_up_tables.make("seed", tmp_path / "items"))
  with pytest.raises(ValueError, match="stage gen3 answers no questions"):
    _evaluator(tmp_path, "seed", copy)
  with pytest.raises(ValueError, match=r"unknown options \['noise'\]; known: .*max_tiles"):
    _evaluator(tmp_path, "seed", copy, noise="prompt")


def test_what_does_not_suit_is_named(tmp_path):
  copy = made_up.make("geneval", tmp_path / "items")
  with pytest.raises(ValueError, match=r"unknown options \['speed'\]"):
    _evaluator(tmp_path, "geneval", copy, speed=1)
  with pytest.raises(ValueError, match="generates no images"):
    _evaluator(tmp_path, "geneval", copy, task=object())
  with pytest.raises(ValueError, match="unknown benchmark 'geneva'"):
    _evaluator(tmp_path, "geneva", copy)


@pytest.mark.parametrize("module", [eval_geneval, eval_wise, eval_imgedit])
def test_configs_name_a_benchmark(module):
  c = module.get_config("1b")
  row = evals_base.read_row(c.eval.sets[0])
  assert row.protocol == "benchmark"
  assert base.find(row.source.kind).name == row.name
  assert (c.eval.seed, c.sample.steps, c.sample.guidance, c.image_size) == (42, 20, 4.5, 448)
