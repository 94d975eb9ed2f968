"""MME's three readings of answers equal the recorded runs of the three programs."""

import json
import re

import pytest

from tests.scores import made_up_tables
from unilip_jax.scores import mme, predicting, tables, vlmeval

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


def test_the_distributed_folder_holds_the_questions_of_the_table(tmp_path):
  folder = made_up_tables.make_mme_folder(tmp_path / "folder")
  ours = _BENCHMARK.read_items(str(folder))
  table = _BENCHMARK.read_items(str(made_up_tables.make("mme", tmp_path / "table")))
  assert [(i.id, i.prompt, i.category, i.record["answer"]) for i in ours] == [
      (i.id, i.prompt, i.category, i.record["answer"]) for i in table]
  assert ours[-1].images == (
      f"{folder}/MME_Benchmark_release_version/MME_Benchmark/code_reasoning/0013.png",)
  assert ours[8].images[0].endswith("/posters/images/0004.jpg")
  assert _BENCHMARK.read_items(f"{folder}/MME_Benchmark_release_version/MME_Benchmark") == ours


@pytest.mark.parametrize(("text", "error", "message"), [
    ("a\tYes\nb No\n", ValueError, r"color/0003\.txt, line 2: malformed: 'b No'"),
    ("a\tYes\nb\tMaybe\n", ValueError, r"color/0003\.txt, line 2: malformed"),
    ("a\tYes\n", ValueError, r"color/0003\.txt holds 1 questions; an image of MME has 2"),
    (None, FileNotFoundError, r"no image .*color/0003 .* for the questions .*0003\.txt")])
def test_what_is_wrong_in_the_distributed_folder_is_named(tmp_path, text, error, message):
  folder = made_up_tables.make_mme_folder(tmp_path)
  color = folder / "MME_Benchmark_release_version/MME_Benchmark/color"
  if text is None:
    (color / "0003.png").unlink()
  else:
    (color / "0003.txt").write_text(text)
  with pytest.raises(error, match=message):
    _BENCHMARK.read_items(str(folder))
  with pytest.raises(FileNotFoundError, match=r"neither MME\.tsv nor folders of MME's tasks"):
    _BENCHMARK.read_items(str(color))


def test_answers_are_written_as_the_official_text_files(tmp_path):
  folder = made_up_tables.make_mme_folder(tmp_path / "folder")
  items = _BENCHMARK.read_items(str(folder))
  answers = {i.id: i.record["answer"] + "\n\t." for i in items}
  (tmp_path / "answers.json").write_text(json.dumps(answers))
  predicting.main(["--benchmark=mme", f"--items={folder}", f"--answers={tmp_path}/answers.json",
                   f"--out={tmp_path}/Your_Results"])
  text = (tmp_path / "Your_Results/posters.txt").read_text()
  assert text.splitlines()[1] == "0004.jpg\tIs thing 1 in image 4? Please answer yes or no.\tNo\tNo ."
  score = _BENCHMARK.aggregate(str(tmp_path / "Your_Results"), items=str(folder))
  assert (score.score, score.n, score.missing) == (2000, 28, 0)
  table = _BENCHMARK.aggregate(_written_table(tmp_path, items, answers))
  assert table.details["reading"] == "vlmevalkit"
  assert table.variants["perception official"] == score.score


def _written_table(tmp_path, items, answers):
  _BENCHMARK.write_answers(str(tmp_path / "predictions.tsv"), items, answers)
  return str(tmp_path / "predictions.tsv")


@pytest.mark.parametrize(("answer", "label"), [
    ("是", "yes"), ("不是", "no"), ("否", "no"), ("True", "yes"), ("false.", "no"), ("猫猫猫猫yes", "yes"),
    ("Y\nes", "yes"), ("The answer is yes", "other"), ("", "other")])
def test_internvl_cleans_answers_before_the_official_rule(answer, label):
  assert mme.internvl_label(answer) == label


def test_the_score_of_every_rule_is_a_variant(recorded, tmp_path):
  texts = _BENCHMARK.aggregate(str(recorded / "mme/answers"))
  table = _BENCHMARK.aggregate(_table(recorded, tmp_path / "MME.tsv"))
  for sum_of in ("perception", "cognition"):
    assert table.variants[sum_of] == texts.variants[f"{sum_of} vlmevalkit"]
    assert table.variants[f"{sum_of} official"] == texts.variants[sum_of]
    for rule in ("lmms_eval", "internvl"):
      assert table.variants[f"{sum_of} {rule}"] == texts.variants[f"{sum_of} {rule}"]
