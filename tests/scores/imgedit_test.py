"""ImgEdit's answers and means equal the official scripts' recorded runs."""

import json

import pytest

from tests.scores import made_up
from unilip_jax.scores import base, imgedit

_BENCHMARK = imgedit.ImgEdit()


def _json(path):
  return json.loads(path.read_text())


def test_recorded_averages_of_answers(recorded):
  folder = recorded / "imgedit"
  averages = _json(folder / "average_score.json")
  for key, answer in _json(folder / "result.json").items():
    parsed = _BENCHMARK.parse({"": answer})
    assert (parsed and parsed["score"]) == averages.get(key), answer


def test_recorded_numbers_of_lmms_eval(recorded):
  answers = _json(recorded / "imgedit/result.json")
  for key, numbers in _json(recorded / "imgedit/lmms_eval_scores.json").items():
    assert imgedit.parse_last_numbers(answers[key]) == numbers, answers[key]


def test_recorded_scores_of_types(recorded):
  folder = recorded / "imgedit"
  score = _BENCHMARK.aggregate(str(folder))
  assert score.categories == _json(folder / "typescore.json") == _json(folder / "typescore_uniworld.json")
  assert score.variants["micro_bagel"] == _json(folder / "typescore_bagel.json")["overall"]
  assert score.score == score.variants["macro"] == base.mean(score.categories.values())
  assert score.published_variant == "macro"
  assert (score.n, score.missing, score.malformed) == (53, 1, 36)
  assert "1 missing edits: 1000" in score.messages
  assert "result.json, key 9999 is not in the metadata and counts in no type" in score.messages


def test_strict_rules_count_zeros(recorded):
  score = _BENCHMARK.aggregate(str(recorded / "imgedit"), rules="strict")
  assert score.n == 90
  assert all(n == 10 for n in score.details["edits by type"].values())
  assert score.variants["micro"] == pytest.approx(
      53 / 90 * _BENCHMARK.aggregate(str(recorded / "imgedit")).variants["micro"])


def test_recorded_hard_suite(recorded):
  folder = recorded / "imgedit"
  score = imgedit.ImgEditHard().aggregate(str(folder / "uge_result.json"))
  assert f"{score.score}\n" == (folder / "uge_stdout.txt").read_text()


def test_a_failed_call_is_left_out_and_named(recorded, tmp_path):
  recording = _json(recorded / "imgedit/error_entry.json")
  assert recording["official_exit_code"] == 1
  (tmp_path / "result.json").write_text(json.dumps({**recording["entry"], "1001": "a: 4"}))
  (tmp_path / "basic_edit.json").write_text(json.dumps({
      key: {"id": "a/b.jpg", "prompt": "p", "edit_type": "add"} for key in ("1000", "1001")}))
  score = _BENCHMARK.aggregate(str(tmp_path))
  assert (score.score, score.n, score.malformed, score.missing) == (4.0, 1, 1, 0)
  assert "key 1000: malformed: {'error': 'timeout'}: a failed call" in score.messages[0]


def test_a_doubled_key_is_named(tmp_path):
  (tmp_path / "result.json").write_text('{"7": "a: 1", "7": "a: 3"}')
  (tmp_path / "basic_edit.json").write_text('{"7": {"id": "x", "prompt": "p", "edit_type": "add"}}')
  score = _BENCHMARK.aggregate(str(tmp_path))
  assert score.score == 3
  assert score.messages == ("result.json: the key 7 occurs 2 times: the last one counts",)


@pytest.fixture
def source(tmp_path):
  """Two edits with images and made-up judge prompts."""
  (tmp_path / "human").mkdir()
  made_up.write_image(tmp_path / "human/000000007.jpg", 0)
  (tmp_path / "singleturn.json").write_text(json.dumps({
      key: {"id": "human/000000007.jpg", "prompt": f"edit {key}", "edit_type": "action"}
      for key in ("77", "80")}))
  prompts = {t: f"{t}: <edit_prompt>?" for t in imgedit.TYPES}
  (tmp_path / "judge_prompt.json").write_text(json.dumps(prompts))
  return tmp_path


def test_the_judge_sees_both_files_as_they_are(source):
  items = _BENCHMARK.read_items(str(source))
  assert [(i.id, i.prompt, i.category) for i in items] == [
      ("77", "edit 77", "action"), ("80", "edit 80", "action")]
  assert _BENCHMARK.output_path(items[0], 0) == "77.png"
  (request,) = _BENCHMARK.judge_requests(items[1], [b"edited"], _BENCHMARK.read_prompts(str(source)))
  text, original, edited = request.messages[0].parts
  assert text == "action: edit 80?"
  data = (source / "human/000000007.jpg").read_bytes()
  assert (original.data, original.media_type) == (data, "image/png")
  assert edited.data == b"edited"
  assert "temperature" not in request.body("gpt-4.1")


def test_a_source_that_is_absent_or_broken_is_named_with_its_item(source):
  items, prompts = _BENCHMARK.read_items(str(source)), _BENCHMARK.read_prompts(str(source))
  (source / "human/000000007.jpg").write_bytes(b"half")
  with pytest.raises(ValueError, match=r"item 80: .*000000007\.jpg: 4 bytes that are no complete image"):
    _BENCHMARK.judge_requests(items[1], [b"edited"], prompts)
  (source / "human/000000007.jpg").unlink()
  with pytest.raises(FileNotFoundError, match=r"item 80: .*000000007\.jpg does not exist"):
    _BENCHMARK.judge_requests(items[1], [b"edited"], prompts)


def test_numbers_at_which_the_official_script_stops_are_no_scores():
  assert imgedit.parse_lines(f"A: \u00b2\nB: {'9' * 5000}\nC: 4") == [4]


def test_a_score_outside_of_the_scale_counts_and_is_named(tmp_path):
  (tmp_path / "result.json").write_text('{"7": "a: 50"}')
  (tmp_path / "basic_edit.json").write_text('{"7": {"id": "x", "prompt": "p", "edit_type": "add"}}')
  score = _BENCHMARK.aggregate(str(tmp_path))
  assert score.score == 50
  assert score.messages == ("result.json, key 7: 50 is outside 1 to 5 and counts as it is",)


def test_judgements_come_back_as_they_were_written(source):
  items = _BENCHMARK.read_items(str(source))
  judgements = [base.Judgement("77", 0, {"": "A: 4\nB: 3\nC: 3"}, {"score": 3.33}),
                base.Judgement("80", 0, {"": None}, None, "failed: timeout")]
  _BENCHMARK.write_judgements(str(source / "out"), items, judgements)
  score = _BENCHMARK.aggregate(str(source / "out"), items=str(source))
  assert (score.score, score.n, score.missing) == (3.33, 1, 1)


def test_lacking_prompts_are_named(source):
  (source / "judge_prompt.json").write_text(json.dumps({"add": "<edit_prompt>"}))
  with pytest.raises(ValueError, match="no prompt with <edit_prompt> for background, adjust, style"):
    _BENCHMARK.read_prompts(str(source))
  (source / "UGE_bench.py").write_text('prompt = """Made up <edit_prompt>."""\n')
  assert imgedit.ImgEditHard().read_prompts(str(source / "UGE_bench.py")) == "Made up <edit_prompt>."


def test_absent_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"lacks result.json: the judge's answers"):
    _BENCHMARK.aggregate(str(tmp_path))
  (tmp_path / "result.json").write_text("{}")
  with pytest.raises(FileNotFoundError, match=r"lacks basic_edit.json or singleturn.json"):
    _BENCHMARK.aggregate(str(tmp_path))
