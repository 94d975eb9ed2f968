"""DPG-Bench's scores equal the official program's recorded runs."""

import json
import re
import shutil

import pytest

from unilip_jax.scores import dpg


@pytest.mark.parametrize(("benchmark", "file"), [
    (dpg.Dpg(), "result_pic4.txt"), (dpg.DpgOne(), "result_pic1.txt")])
def test_recorded_scores(recorded, benchmark, file):
  score = benchmark.aggregate(str(recorded / "dpg"))
  text = (recorded / "dpg" / file).read_text()
  assert score.details["images"] == {
      name: pytest.approx(float(value)) for name, value in re.findall(r"/(\w+)\.png.*, (\S+)\n", text)}
  assert float(text.rsplit(": ", 1)[1]) == pytest.approx(score.score * 100)
  first, second = text.split("L2 category scores:")
  for part, categories in ((first, score.categories), (second, score.details["second level"])):
    printed = {c: float(v) for c, v in re.findall(r"\t(.*): (\S+)\n", part)}
    assert {c: pytest.approx(v * 100) for c, v in categories.items()} == printed
  assert (score.n, score.missing, score.malformed) == (5, 1, 2)
  text = "\n".join(score.messages)
  for part in ("image item0: malformed: question 2 depends on question 1, which is not read",
               "image unknown: malformed: no such item", "1 missing images: item5"):
    assert part in text


def test_strict_rules_read_the_first_question_and_count_zeros(recorded, tmp_path):
  folder = shutil.copytree(recorded / "dpg", tmp_path / "dpg")
  answers = json.loads((folder / "answers.json").read_text())
  questions = dpg.read_questions(dpg.records.existing(folder / "questions.csv", "questions"), every=True)
  assert len(questions["item0"]) == 6
  answers["answers"] |= {f"{q.text}|{tile}": "yes" for q in questions["item0"] for tile in range(4)}
  (folder / "answers.json").write_text(json.dumps(answers))
  score = dpg.Dpg().aggregate(str(folder), rules="strict")
  assert score.n == 7
  assert score.details["images"]["item0"] == 1
  assert score.details["images"]["item5"] == 0


def test_the_detail_file_of_the_official_program(recorded, tmp_path):
  want = dpg.Dpg().aggregate(str(recorded / "dpg"))
  shutil.copy(recorded / "dpg/questions.csv", tmp_path)
  answers = json.loads((recorded / "dpg/answers.json").read_text())["answers"]
  boxes = ["(0, 0, 8, 8)", "(8, 0, 16, 8)", "(0, 8, 8, 16)", "(8, 8, 16, 16)"]
  lines = []
  for key, answer in answers.items():
    question, tile = key.split("|")
    item = question.split()[-2]
    lines.append(f"made_up_model/{item}.png, {boxes[int(tile)]}, {question}, {answer}\n")
  (tmp_path / "r_detail.txt").write_text("".join(lines))
  score = dpg.Dpg().aggregate(str(tmp_path))
  assert score.details["images"] == want.details["images"]
  assert score.categories == want.categories
  assert (score.n, score.malformed) == (5, 1)


def test_a_question_that_occurs_twice_is_named(recorded, tmp_path):
  folder = shutil.copytree(recorded / "dpg", tmp_path / "dpg")
  lines = (folder / "questions.csv").read_text().splitlines(keepends=True)
  (folder / "questions.csv").write_text("".join([*lines[:8], *lines[7:]]))
  score = dpg.Dpg().aggregate(str(folder))
  assert "the question item1, 1 occurs 2 times: the last one counts" in score.messages
  assert score.score == dpg.Dpg().aggregate(str(recorded / "dpg")).score


def test_zeros_reach_later_children_alone():
  def question(number, *parents):
    return dpg.Question(number, f"q{number}", "entity", parents)

  answers = {1: "no", 2: "yes", 3: "yes"}
  assert dpg.score_tile([question(1, 0), question(2, 1), question(3, 2)], answers) == 0
  assert dpg.score_tile([question(3, 2), question(1, 0), question(2, 1)], answers) == pytest.approx(1 / 3)


def test_prompts_are_read_from_either_form(recorded, tmp_path):
  items = dpg.Dpg().read_items(str(recorded / "dpg"))
  assert [i.id for i in items] == [f"item{i}" for i in range(7)]
  assert dpg.Dpg().output_path(items[0], 0) == "item0.png"
  (tmp_path / "3.txt").write_text("a kettle\n")
  assert [(i.id, i.prompt) for i in dpg.Dpg().read_items(str(tmp_path))] == [("3", "a kettle")]
