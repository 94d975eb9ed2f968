"""MM-Vet's grades and sums equal the recorded runs of both programs."""

import csv
import io
import json

import pytest

from unilip_jax.scores import base, mmvet, tables

_BENCHMARK = mmvet.MmVet()


def _json(path):
  return json.loads(path.read_text())


def test_recorded_grades_in_call_order(recorded):
  """Replays the official calls: a malformed grade is asked for again with a longer prompt."""
  recording = _json(recorded / "mmvet/official.json")
  calls = iter(zip(recording["judge_answers_in_call_order"],
                   recording["calls_max_tokens_temperature_retry_prompt"]))
  prompts = {"prompt": "table", "retry": "\nretry"}
  for name, record in recording["metadata"].items():
    item = base.Item(name, record["question"], "x", record=record)
    for attempt in range(_BENCHMARK.judge.tries):
      answer, (max_tokens, temperature, retried) = next(calls)
      (request,) = _BENCHMARK.judge_requests(item, [b"my answer"], prompts, attempt)
      assert (request.max_tokens, request.temperature) == (max_tokens, temperature)
      (text,) = request.messages[0].parts
      assert text == "table\nmade up? | x <AND> y <OR> z | my answer | " + ("\nretry" if retried else "")
      if (parsed := _BENCHMARK.parse({"": answer})) is not None:
        assert [parsed["score"]] == recording["grades"][name]["score"]
        break
  assert next(calls, None) is None


def test_recorded_sums(recorded):
  score = _BENCHMARK.aggregate(str(recorded / "mmvet/official.json"))
  (row,) = csv.DictReader(io.StringIO(_json(recorded / "mmvet/official.json")["capability_csv"]))
  assert score.score * 100 == pytest.approx(float(row["total"]))
  assert {c: v * 100 for c, v in score.categories.items()} == pytest.approx(
      {c: float(row[c]) for c in score.categories})
  assert len(score.categories) == 6


def test_recorded_table_of_vlmevalkit(recorded):
  score = _BENCHMARK.aggregate(str(recorded / "mmvet/vlmevalkit.json"))
  recording = _json(recorded / "mmvet/vlmevalkit.json")
  for row in recording["by_capability"]:
    value = score.score if row["Category"] == "Overall" else score.categories[row["Category"]]
    assert value * 100 == pytest.approx(row["acc"])
  for row in recording["by_combination"][:-1]:
    assert score.details["combinations"][row["Category"]] * 100 == pytest.approx(row["acc"])
    assert score.details["questions"][row["Category"]] == row["tot"]


def test_strict_rules_count_a_question_once_in_its_capability(recorded):
  official = _BENCHMARK.aggregate(str(recorded / "mmvet/vlmevalkit.json"))
  strict = _BENCHMARK.aggregate(str(recorded / "mmvet/vlmevalkit.json"), rules="strict")
  assert (official.details["questions"]["math"], strict.details["questions"]["math"]) == (12, 11)


def test_grades_come_back_as_they_were_written(tmp_path):
  (tmp_path / "mm-vet.json").write_text(json.dumps({
      f"v1_{i}": {"imagename": f"v1_{i}.png", "question": "q", "answer": "a", "capability": ["ocr"]}
      for i in range(4)}))
  items = _BENCHMARK.read_items(str(tmp_path))
  assert items[0].images == (str(tmp_path / "images/v1_0.png"),)
  _BENCHMARK.write_answers(str(tmp_path / "answers.json"), items, {"v1_0": "yes"})
  assert _json(tmp_path / "answers.json") == {"v1_0": "yes"}
  _BENCHMARK.write_judgements(str(tmp_path / "m"), items, [
      base.Judgement(i.id, 0, {"": "0.5"}, {"score": 0.5}) for i in items[:3]])
  score = _BENCHMARK.aggregate(str(tmp_path / "m"), items=str(tmp_path))
  # The official sum is divided by all questions: an absent grade counts 0.
  assert (score.score, score.n, score.missing) == (round(1.5 / 4 * 100, 1) / 100, 3, 1)


def test_a_table_with_a_broken_score(tmp_path):
  tables.write_tsv(tmp_path / "a.tsv", [
      {"index": 1, "category": "ocr,math", "score": 1.0}, {"index": 2, "category": "ocr", "score": "bad"}])
  score = _BENCHMARK.aggregate(str(tmp_path / "a.tsv"))
  assert (score.score, score.n, score.malformed) == (1, 1, 1)
  assert _BENCHMARK.aggregate(str(tmp_path / "a.tsv"), rules="strict").score == 0.5
