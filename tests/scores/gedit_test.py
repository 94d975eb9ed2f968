"""VIEScore's parser and GEdit-Bench's statistics equal the official programs' recorded runs."""

import io
import json
import random
import re
import shutil

from PIL import Image
import pyarrow as pa
from pyarrow import parquet
import pytest

from unilip_jax.scores import base, gedit, viescore

_BENCHMARK = gedit.GEdit()


def _cases(recorded, name):
  return json.loads((recorded / "gedit" / name).read_text())


def test_recorded_answers(recorded):
  for case in _cases(recorded, "mllm_output_to_dict.json"):
    assert viescore.parse(case["text"]) == (case["result"] or None), case["text"]


def test_recorded_repairs(recorded):
  for case in _cases(recorded, "fix_json.json"):
    assert viescore.repair(case["text"]) == case["result"]


def test_recorded_scores_of_two_answers(recorded):
  *cases, second_try = _cases(recorded, "viescore_evaluate.json")
  for case in cases:
    assert list(viescore.scores(case["sc_answer"], case["pq_answer"]).values()) == case["result"]
    assert case["images_sent"] == [2, 1]
  # The official second try makes a random number of an answer without JSON; here it stays malformed.
  answers = second_try["answers_in_call_order"]
  assert viescore.scores(*answers[:2]) is None
  assert viescore.scores(*answers[2:]) is None
  guess = random.Random(second_try["python_random_seed"])
  assert list(viescore.scores(*answers[2:], guess).values()) == second_try["result"]


@pytest.mark.parametrize("answer", [
    '{"score": "4"}', '{"score": []}', '{"score": [true, 1]}', "-1", f'{{"score": [{"9" * 400}]}}',
    f'{{"score": {"[" * 5000}}}', '{"score": [NaN]}', '{"score": [1e999]}'])
def test_scores_that_are_no_numbers_are_malformed(answer):
  assert viescore.scores(answer, "5") is None


def test_recorded_statistics(recorded):
  score = _BENCHMARK.aggregate(str(recorded / "gedit/results"))
  text = (recorded / "gedit/statistics_en_stdout.txt").read_text()
  everything, shared = text.split("\n\nIntersection:\n")
  for part, table in ((everything, "groups (SC, PQ, O)"),
                      (shared, "groups of the intersection (SC, PQ, O)")):
    printed = dict(re.findall(r"^([\w-]+): (\d.*)$", part, re.MULTILINE))
    for group in gedit.GROUPS:
      assert ", ".join(f"{x:.3f}" for x in score.details[table][group]) == printed[group]
  variants = [f"{score.variants[m]:.3f}" for m in ("SC", "PQ", "O")]
  assert f"Average: {', '.join(variants)}" in text
  variants = [f"{score.variants[f'{m} intersection']:.3f}" for m in ("SC", "PQ", "O")]
  assert f"Average Intersection: {', '.join(variants)}" in text
  assert (score.n, score.missing, score.malformed) == (64, 0, 0)


def test_the_official_language_zh_finds_no_row(recorded):
  class Zh(gedit.GEdit):
    language = "zh"

  score = Zh().aggregate(str(recorded / "gedit/results")).as_json()
  assert (recorded / "gedit/statistics_zh_stdout.txt").read_text().count("nan, nan, nan") == 24
  assert score["score"] is None
  assert not any(score["categories"].values())
  assert gedit.GEditChinese().aggregate(str(recorded / "gedit/results")).n == 64


def _copy(recorded, tmp_path):
  shutil.copytree(recorded / "gedit/results", tmp_path / "results")
  return tmp_path / "results", next((tmp_path / "results").rglob("*_text_change_gpt_score.csv"))


def test_malformed_rows_and_absent_groups_are_named(recorded, tmp_path):
  folder, file = _copy(recorded, tmp_path)
  lines = file.read_text().splitlines(True)
  lines[1] = "s0,e0,made up,n/a,8,True,en\n"
  file.write_text("".join(lines))
  score = _BENCHMARK.aggregate(str(folder))
  assert (score.n, score.malformed) == (63, 1)
  assert score.messages == (
      f"{file.name}, row 2: malformed: a score is no number (officially the statistics stop)",)
  assert _BENCHMARK.aggregate(str(folder), rules="strict").details["groups (SC, PQ, O)"]["text_change"][
      0] == pytest.approx((47 - 8) / 8)
  file.unlink()
  score = _BENCHMARK.aggregate(str(folder)).as_json()
  assert (score["score"], score["missing"]) == (None, 1)
  assert score["messages"] == ["1 missing score files: *_text_change_gpt_score.csv"]
  assert _BENCHMARK.aggregate(str(folder), rules="strict").categories["text_change"] == 0


def test_an_empty_cell_makes_the_official_mean_undefined(recorded, tmp_path):
  folder, file = _copy(recorded, tmp_path)
  file.write_text(file.read_text().replace("s0,e0,made up,8,8,True,en", "s0,e0,made up,,8,True,en"))
  score = _BENCHMARK.aggregate(str(folder)).as_json()
  assert score["score"] is None
  assert score["categories"]["text_change"] is None
  assert score["malformed"] == 1


def test_two_models_in_a_folder_are_refused(recorded, tmp_path):
  folder, _ = _copy(recorded, tmp_path)
  shutil.copytree(folder / "made_up_model", folder / "another")
  with pytest.raises(ValueError, match="several models or judges"):
    _BENCHMARK.aggregate(str(folder))


def _png(size):
  out = io.BytesIO()
  Image.new("RGB", size, "red").save(out, "PNG")
  return out.getvalue()


@pytest.fixture
def source(tmp_path):
  """Items as parquet, as the dataset is published."""
  image = {"bytes": _png((20, 10)), "path": "a.png"}
  rows = [{"task_type": group, "key": f"{i:032x}", "instruction": f"edit {i}",
           "instruction_language": language, "Intersection_exist": i % 2 == 0, "input_image": image,
           "input_image_raw": image}
          for i, (group, language) in enumerate([("ps_human", "en"), ("tone_transfer", "cn"),
                                                 ("tone_transfer", "en")])]
  parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000.parquet")
  (tmp_path / "vie_prompts.py").write_text("\n".join(
      f'{name} = """{text}"""' for name, text in (
          ("_context_no_delimit", "context"), ("_prompts_0shot_two_image_edit_rule", "rule"),
          ("_prompts_0shot_tie_rule_SC", "SC <instruction>"), ("_prompts_0shot_rule_PQ", "PQ"))))
  return tmp_path


def test_two_calls_about_each_edit(source):
  items = _BENCHMARK.read_items(str(source))
  assert [i.category for i in items] == ["ps_human", "tone_transfer"]
  assert _BENCHMARK.output_path(items[0], 0) == f"fullset/ps_human/en/{items[0].id}.png"
  ((path, content),) = _BENCHMARK.side_files(items[0]).items()
  assert path == f"fullset/ps_human/en/{items[0].id}_SRCIMG.png"
  assert Image.open(io.BytesIO(content)).size == (20, 10)
  prompts = _BENCHMARK.read_prompts(str(source / "vie_prompts.py"))
  consistency, quality = _BENCHMARK.judge_requests(items[1], [_png((8, 8))], prompts)
  text, *images = consistency.messages[0].parts
  assert text == "context\nrule\nSC edit 2"
  assert [Image.open(io.BytesIO(i.data)).size for i in images] == [(20, 10), (20, 10)]
  assert quality.messages[0].parts == ("context\nPQ", images[1])
  assert images[1].media_type == "image/jpeg"
  assert consistency.max_tokens == 1400
  assert _BENCHMARK.parse({"SC": "[4, 9]", "PQ": '{"score": [9, 10]}'}) == {"SC": 4, "PQ": 9, "O": 6}


def test_judgements_come_back_as_they_were_written(source):
  items = _BENCHMARK.read_items(str(source))
  _BENCHMARK.write_judgements(str(source / "my_model"), items, [
      base.Judgement(items[0].id, 0, {}, {"SC": 4, "PQ": 9, "O": 6}),
      base.Judgement(items[1].id, 0, {}, None, "refused")])
  score = _BENCHMARK.aggregate(str(source / "my_model"), items=str(source))
  assert score.categories["ps_human"] == 6
  assert (score.n, score.missing) == (1, 1)
  assert f"1 missing edits: {items[1].id}" in score.messages
