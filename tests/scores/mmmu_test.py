"""MMMU's official parsers and scores equal the recorded runs."""

import json
import random
import shutil

import pytest

from unilip_jax.scores import mmmu, mmmu_rules


def _json(path):
  return json.loads(path.read_text())


def test_recorded_letters(recorded):
  recording = _json(recorded / "mmmu/parse.json")
  for case in recording["multiple_choice"]:
    generator = random.Random(recording["python_random_seed_before_each"])
    assert mmmu_rules.choose(case["text"], recording["choices"], generator) == case["result"], case


def test_nothing_is_chosen_at_random_unless_asked_for():
  assert mmmu_rules.choose("no idea", {"A": "x", "B": "y"}) is None


def test_recorded_open_answers(recorded):
  for case in _json(recorded / "mmmu/parse.json")["open"]:
    values = mmmu_rules.parse_open(case["text"])
    assert sorted(map(repr, values)) == sorted(map(repr, case["result"])), case
  for case in _json(recorded / "mmmu/eval_open.json"):
    assert mmmu_rules.is_open_right(case["gold"], mmmu_rules.parse_open(case["text"])) == case["correct"]


def test_recorded_scores(recorded):
  score = mmmu.Mmmu().aggregate(str(recorded / "mmmu"))
  want = _json(recorded / "mmmu/scores.json")
  overall = want.pop("Overall")
  assert (score.score, score.n) == (overall["acc"], overall["num"])
  assert score.categories == {name: row["acc"] for name, row in want.items()}
  for subject, number in score.details["questions"].items():
    assert number == want[subject]["num"]


def test_absent_and_unknown_answers_are_named(recorded, tmp_path):
  folder = shutil.copytree(recorded / "mmmu", tmp_path / "mmmu")
  outputs = _json(folder / "outputs.json")
  assert outputs.pop("validation_Math_1") == "C"  # a right answer
  outputs |= {"validation_Cooking_1": "A", "validation_Math_2": None}
  (folder / "outputs.json").write_text(json.dumps(outputs))
  score = mmmu.Mmmu().aggregate(str(folder))
  assert (score.n, score.missing, score.malformed) == (23, 1, 1)
  assert score.score == pytest.approx(11 / 23, abs=5e-4)
  text = "\n".join(score.messages)
  assert "validation_Cooking_1 is no question" in text
  assert "1 missing questions: validation_Math_1" in text
  assert "validation_Math_2: malformed: None" in text
  assert mmmu.Mmmu().aggregate(str(folder), rules="strict").score == 11 / 25
