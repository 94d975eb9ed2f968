"""MME's three readings of answers equal the recorded runs of the three programs."""

import json
import re

import pytest

from unilip_jax.scores import mme, tables, vlmeval

_BENCHMARK = mme.Mme()


def _json(path):
  return json.loads(path.read_text())


@pytest.mark.parametrize(("file", "read"), [
    ("parse_pred_ans.json", mme.official_label), ("lmms_eval_parse.json", mme.lmms_label)])
def test_recorded_labels(recorded, file, read):
  for case in _json(recorded / "mme" / file):
    assert read(case["text"]) == case["label"], case["text"]


def test_recorded_labels_of_vlmevalkit(recorded):
  for case in _json(recorded / "mme/vlmevalkit_yes_no.json"):
    assert vlmeval.yes_or_no(case["text"]) == case["extracted"], case["text"]


def test_recorded_scores_of_text_files(recorded):
  score = _BENCHMARK.aggregate(str(recorded / "mme/answers"))
  text = (recorded / "mme/official_scores.txt").read_text()
  printed = {task: float(s) for task, s in re.findall(r"\t (\w+) score: (\S+)", text)}
  assert score.categories == pytest.approx(printed)
  totals = [float(t) for t in re.findall(r"total score: (\S+)", text)]
  assert [score.variants["perception"], score.variants["cognition"]] == pytest.approx(totals)
  lmms = _json(recorded / "mme/lmms_eval_scores.json")
  assert score.variants["perception lmms_eval"] == pytest.approx(lmms["mme_perception_score"])
  assert score.variants["cognition lmms_eval"] == pytest.approx(lmms["mme_cognition_score"])
  assert score.published_variant == "perception vlmevalkit"
  assert (score.n, score.missing, score.malformed) == (150, 0, 0)


def _table(recorded, path):
  rows = []
  for task in (*mme.PERCEPTION, *mme.COGNITION):
    for line in (recorded / f"mme/answers/{task}.txt").read_text().splitlines():
      image, question, answer, prediction = line.split("\t")
      rows.append({"index": len(rows), "category": task, "image_path": f"{task}/{image}",
                   "question": question, "answer": answer, "prediction": prediction})
  tables.write_tsv(path, rows)
  return str(path)


def test_recorded_scores_of_vlmevalkits_table(recorded, tmp_path):
  score = _BENCHMARK.aggregate(_table(recorded, tmp_path / "MME.tsv"))
  want = _json(recorded / "mme/vlmevalkit_scores.json")
  assert score.variants["perception"] == pytest.approx(want.pop("perception"))
  assert score.variants["cognition"] == pytest.approx(want.pop("reasoning"))
  assert score.categories == pytest.approx(want)
  assert score.published_variant == "perception"


def _write(folder, task, lines):
  (folder / f"{task}.txt").write_text("".join(f"{line}\n" for line in lines))


def test_a_skipped_line_still_counts_its_image(tmp_path):
  _write(tmp_path, "color", ["a\tq\tYes\tyes", "a\tq\tNo\tno", "b\tq\tYes\tyes", "a bad line"])
  score = _BENCHMARK.aggregate(str(tmp_path))
  assert score.categories == {"color": 100 + 50}
  assert (score.score, score.n, score.malformed, score.missing) == (None, 3, 1, 13)
  assert "color.txt, line 4: malformed: 1 fields" in score.messages[0]
  assert "13 missing tasks: existence, count" in score.messages[1]
  strict = _BENCHMARK.aggregate(str(tmp_path), rules="strict")
  assert strict.categories["color"] == 75 + 50
  assert strict.score == 125


def test_a_question_without_its_partner_is_missing(tmp_path):
  _write(tmp_path, "OCR", ["a\tq\tYes\tyes", "a\tq\tNo\tno", "b\tq\tYes\tyes"])
  score = _BENCHMARK.aggregate(str(tmp_path))
  assert score.categories["OCR"] == 150
  assert "1 missing questions of OCR: the second one about b" in score.messages
