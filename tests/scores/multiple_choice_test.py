"""Option letters, circular evaluation, MMVP's pairs and the questions follow VLMEvalKit's recorded runs."""

import base64
import json

import pytest

from unilip_jax.data import tiles
from unilip_jax.scores import mmmu, mmvp, multiple_choice, predicting, tables, vlmeval


def _json(path):
  return json.loads(path.read_text())


def test_recorded_options(recorded):
  recording = _json(recorded / "mcq/can_infer.json")
  for case in recording["cases"]:
    label = vlmeval.infer_option(case["text"], recording["choices"][case["choices"]])
    assert label == (case["label"] or None), case


def _assert_accuracy(score, rows):
  for row in rows:
    categories = score.details["categories by split"][row.pop("split")]
    overall = row.pop("Overall")
    assert categories == pytest.approx(row)
    assert overall in [pytest.approx(v) for v in score.variants.values()]


def test_recorded_circular_evaluation(recorded):
  recording = _json(recorded / "mcq/circular.json")
  score = multiple_choice.MMBench().aggregate(str(recorded / "mcq/circular.json"))
  assert {v.id: v.value for v in score.values} == recording["hit"]
  _assert_accuracy(score, recording["accuracy"])
  assert score.score == score.variants["split dev"] == 0.875


def test_recorded_plain_evaluation(recorded):
  recording = _json(recorded / "mcq/vanilla.json")
  for benchmark in (multiple_choice.Seed(), multiple_choice.Ai2d()):
    score = benchmark.aggregate(str(recorded / "mcq/vanilla.json"))
    assert [v.value for v in score.values] == recording["hit"]
    _assert_accuracy(score, _json(recorded / "mcq/vanilla.json")["accuracy"])


def test_recorded_mmmu(recorded):
  score = mmmu.Mmmu().aggregate(str(recorded / "mcq/mmmu_vlmevalkit.json"))
  assert [v.value for v in score.values] == _json(recorded / "mcq/mmmu_vlmevalkit.json")["hit"]
  assert score.published_variant == "split validation"


def test_recorded_mmvp(recorded):
  recording = _json(recorded / "mcq/mmvp.json")
  score = mmvp.Mmvp().aggregate(str(recorded / "mcq/mmvp.json"))
  assert score.variants == {
      "pairs": recording["vlmevalkit"]["Overall"], "single": recording["vlmevalkit"]["Average"],
      "pairs internvl": recording["internvl_pair_accuracy"]}
  letters = [mmvp.internvl_letter(r["prediction"], vlmeval.choices(r)) for r in recording["records"]]
  assert letters == recording["internvl_post_process"]


def test_recorded_reading_of_internvl(recorded):
  for case in _json(recorded / "mcq/mmvp_post_process.json"):
    letter = mmvp.internvl_letter(case["text"], {"A": "left 1", "B": "right 1"})
    assert letter == case.get("result"), case  # the official script stops at an empty answer


def test_recorded_grids_of_tiles(recorded):
  for case in _json(recorded / "tiling/grids_448.json"):
    columns, rows = tiles.grid_for(case["width"], case["height"], 448, case["max_num"])
    assert (columns, rows) == (case["columns"], case["rows"]), case
    assert case["images"] == columns * rows + (columns * rows > 1)  # with the thumbnail


def _rows(count=3, **more):
  return [{"index": str(i), "question": f"q{i}", "A": "x", "B": "y", "answer": "A", "split": "dev",
           "prediction": "A", **more} for i in range(count)]


def test_uneven_tables_are_counted_exactly(tmp_path):
  rows = _rows()
  rows += [{**rows[0], "prediction": "B"}, {**rows[1], "index": "x"}, {**rows[1], "answer": None}]
  tables.write_tsv(tmp_path / "a.tsv", rows)
  tables.write_tsv(tmp_path / "SEEDBench_IMG.tsv", _rows(5))
  score = multiple_choice.Seed().aggregate(str(tmp_path / "a.tsv"))
  assert (score.score, score.n, score.malformed) == (3 / 4, 4, 2)
  assert "index 0 occurs 2 times: every row counts" in score.messages
  strict = multiple_choice.Seed().aggregate(
      str(tmp_path / "a.tsv"), rules="strict", items=str(tmp_path / "SEEDBench_IMG.tsv"))
  assert (strict.score, strict.missing) == (3 / 8, 2)


def test_an_absent_rotation_is_named(tmp_path):
  rows = _rows(2)
  rows += [{**rows[0], "index": "1000000", "answer": "B", "prediction": "B"}]
  tables.write_tsv(tmp_path / "a.tsv", rows)
  benchmark = multiple_choice.MMBench()
  score = benchmark.aggregate(str(tmp_path / "a.tsv"))
  assert (score.score, score.n, score.missing) == (1, 2, 1)
  assert "1 missing questions: 1000001" in score.messages
  tables.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [
      *rows, {**rows[1], "index": "1000001", "answer": "B"}])
  strict = benchmark.aggregate(str(tmp_path / "a.tsv"), rules="strict",
                               items=str(tmp_path / "MMBench_DEV_EN.tsv"))
  assert (strict.score, strict.n) == (0.5, 2)


def test_questions_are_put_as_vlmevalkit_puts_them(tmp_path):
  image = base64.b64encode(b"file").decode()
  long = base64.b64encode(bytes(100)).decode()
  tables.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [
      {"index": 0, "image": long, "hint": None, "question": "What?", "A": "a cup", "B": "a cat",
       "answer": "A"},
      {"index": 1000000, "image": "0", "hint": "Look.", "question": "什么?", "A": "x", "B": None,
       "answer": "A"}])
  first, second = multiple_choice.MMBench().read_items(str(tmp_path))
  assert first.prompt == ("What?\nA. a cup\nB. a cat\n"
                          "Answer with the option's letter from the given choices directly.")
  assert second.prompt == "Look.\n什么?\nA. x\n请直接回答选项字母。"
  assert first.images == second.images == (bytes(100),)
  tables.write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", [
      {"index": 1, "image": f"['{image}', '{image}']", "question": "Is <image 1> like <image 2>?",
       "A": "<image 1>", "B": "no", "answer": "A"},
      {"index": 2, "image": image, "question": "See <image 1> there", "A": None, "B": None, "answer": "7"}])
  two, one = mmmu.Mmmu().read_items(str(tmp_path))
  assert two.images == (b"file", b"file")
  # The marks stay in the text: VLMEvalKit's adapter of InternVL does not split it.
  assert two.prompt == ("Is <image 1> like <image 2>?\nA. <image 1>\nB. no\n"
                        "Answer with the option's letter from the given choices directly.")
  assert one.prompt == "See <image 1> there\nAnswer the question directly."
  assert tiles.per_image(12, 1) == 12
  assert tiles.per_image(12, 6) == 10


@pytest.mark.parametrize(("answer", "seed", "ai2d", "vlmevalkit"), [
    ("A", 1, 1, 1), ("a", 1, 1, 0), ("A. a cup", 1, 1, 1), ("(A)", 0, 1, 1), ("The answer is A", 0, 0, 1),
    ("A cat", 1, 0, 1), (" A.", 1, 1, 1), ("A) a cup", 1, 0, 1), ("", 0, 0, 0)])
def test_lmms_eval_reads_seed_and_ai2d_otherwise(tmp_path, answer, seed, ai2d, vlmevalkit):
  tables.write_tsv(tmp_path / "a.tsv", _rows(1, A="a cup", B="a dog", prediction=answer))
  for benchmark, right in ((multiple_choice.Seed(), seed), (multiple_choice.Ai2d(), ai2d)):
    score = benchmark.aggregate(str(tmp_path / "a.tsv"))
    assert score.variants["lmms_eval"] == right
    assert score.score == score.variants[score.published_variant] == vlmevalkit
  assert "lmms_eval" not in multiple_choice.MMBench().aggregate(str(tmp_path / "a.tsv")).variants


def test_strict_rules_of_lmms_eval_count_absent_answers_as_wrong(tmp_path):
  tables.write_tsv(tmp_path / "a.tsv", [*_rows(2), {**_rows(1)[0], "index": "7", "answer": None}])
  tables.write_tsv(tmp_path / "SEEDBench_IMG.tsv", _rows(3, prediction=None))
  score = multiple_choice.Seed().aggregate(
      str(tmp_path / "a.tsv"), rules="strict", items=str(tmp_path / "SEEDBench_IMG.tsv"))
  assert score.variants["lmms_eval"] == score.score == 2 / 4


def test_answers_come_back_as_they_were_written(tmp_path):
  tables.write_tsv(tmp_path / "AI2D_TEST.tsv", _rows(4, prediction="", image=""))
  benchmark = multiple_choice.Ai2d()
  items = benchmark.read_items(str(tmp_path))
  benchmark.write_answers(str(tmp_path / "out/m_AI2D_TEST.tsv"), items,
                          {"0": "A.", "1": 'b "quoted"\tx\n', "3": "Z"})
  score = benchmark.aggregate(str(tmp_path / "out"), items=str(tmp_path))
  assert (score.score, score.n, score.missing) == (1 / 3, 3, 1)


@pytest.mark.parametrize("form", ["xlsx", "tsv"])
def test_predictions_are_written_as_a_table_of_vlmevalkit(tmp_path, capsys, form):
  tables.write_tsv(tmp_path / "AI2D_TEST.tsv", _rows(4, image=""))
  (tmp_path / "answers.json").write_text(json.dumps({"0": "A.", "1": "b\tc", "3": "Z", "9": "A"}))
  out = tmp_path / f"model_AI2D_TEST.{form}"
  arguments = ["--benchmark=ai2d", f"--items={tmp_path / 'AI2D_TEST.tsv'}", f"--out={out}"]
  predicting.main([*arguments, f"--answers={tmp_path / 'answers.json'}"])
  written = tables.read(out, "predictions")
  assert [(row["index"], row["prediction"]) for row in written] == [("0", "A."), ("1", "b\tc"), ("3", "Z")]
  assert "image" not in written[0]
  assert {"question", "answer", "A"} <= written[0].keys()
  text = capsys.readouterr().out
  assert "1 questions without an answer, left out: 2\n1 answers to other questions, left out: 9" in text
  assert multiple_choice.Ai2d().aggregate(str(out)).n == 3
  (tmp_path / "answers.json").write_text(json.dumps({"7": "A"}))
  with pytest.raises(ValueError, match="answers none of the questions"):
    predicting.main([*arguments, f"--answers={tmp_path / 'answers.json'}"])


def test_the_original_questions_of_mmvp(tmp_path):
  (tmp_path / "Questions.csv").write_text(
      "lndex,Question,Options,Correct Answer\n"
      "1,Open?,(a) Open (b) Closed,(a)\n2,Open?,(a) Open (b) Closed,(b)\n")
  first, second = mmvp.Mmvp().read_items(str(tmp_path))
  assert (first.record["A"], first.record["B"], second.record["answer"]) == ("Open", "Closed", "B")
  assert first.images == (str(tmp_path / "MMVP Images/1.jpg"),)
