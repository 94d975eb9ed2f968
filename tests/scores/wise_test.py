"""WISE's parsers and sums equal the official programs' recorded runs."""

import json
import re
import shutil

import pytest

from unilip_jax.scores import base, comparing, result, wise

_EDITIONS = {"legacy": wise.Wise(), "verified": wise.WiseVerified()}


def _folder(recorded, tmp_path, edition, without=None):
  for file in (recorded / "wise").glob(f"{edition}_*.jsonl"):
    shutil.copy(file, tmp_path)
  if without is not None:
    file = tmp_path / f"{edition}_culture.jsonl"
    file.write_text("".join(
        line for line in file.read_text().splitlines(True) if json.loads(line)["prompt_id"] != without))
  return str(tmp_path)


def test_recorded_answers_of_the_legacy_judge(recorded):
  for case in json.loads((recorded / "wise/legacy_extract_scores.json").read_text()):
    assert wise.parse_axes(case["text"]) == case["scores"], case
    assert (_EDITIONS["legacy"].parse({"": case["text"]}) is not None) == case["complete"]


def test_recorded_answers_of_the_verified_judge(recorded):
  for case in json.loads((recorded / "wise/verified_extract_scores.json").read_text()):
    assert wise.parse_binary(case["text"]) == case["scores"].get("score"), case


@pytest.mark.parametrize("edition", _EDITIONS)
def test_recorded_sums(recorded, tmp_path, edition):
  score = _EDITIONS[edition].aggregate(_folder(recorded, tmp_path, edition))
  text = (recorded / f"wise/{edition}_all_stdout.txt").read_text()
  summary = text.split("Aggregated Category Scores:")[1]
  printed = re.findall(r"Category: (\w+)\n.*?: ([\d.]+)\n.*?: (\d+)\n", summary)
  assert {c: f"{v:.2f}" for c, v in score.categories.items()} == {c: v for c, v, _ in printed}
  assert score.details["lines by category"] == {c: int(n) for c, _, n in printed}
  assert re.search(r"Overall WiScore: ([\d.]+)", summary)[1] == f"{score.score:.2f}"
  assert score.malformed == text.count("Warning: File")
  for file, line in re.findall(r"Warning: File '([^']+)', Line (\d+)", text):
    assert any(m.startswith(f"{file}, line {line}: malformed") for m in score.messages)


@pytest.mark.parametrize("edition", _EDITIONS)
def test_without_one_id_there_is_no_overall(recorded, tmp_path, edition):
  score = _EDITIONS[edition].aggregate(_folder(recorded, tmp_path, edition, without=123))
  assert "Missing IDs: [123]" in (recorded / f"wise/{edition}_missing_stdout.txt").read_text()
  assert score.score is None
  assert score.missing == 1
  assert "1 missing prompt_ids: 123" in score.messages
  strict = _EDITIONS[edition].aggregate(str(tmp_path), rules="strict")
  assert strict.categories["CULTURE"] == pytest.approx(
      score.categories["CULTURE"] * 400 / 401)  # 399 prompts, one twice, and the absent one


@pytest.mark.parametrize("edition", _EDITIONS)
def test_one_file_has_categories_alone(recorded, edition):
  score = _EDITIONS[edition].aggregate(str(recorded / f"wise/{edition}_spacetime.jsonl"))
  text = (recorded / f"wise/{edition}_spacetime_only_stdout.txt").read_text()
  printed = dict(re.findall(r"Category: (\w+)\n.*?: ([\d.]+)\n", text))
  assert {c: f"{v:.2f}" for c, v in score.categories.items()} == printed
  assert score.score is None


def test_bagels_unweighted_script(recorded, tmp_path):
  score = _EDITIONS["legacy"].aggregate(_folder(recorded, tmp_path, "bagel"))
  printed = (recorded / "wise/bagel_results.txt").read_text().split("\n")[1].split()
  assert printed[0] == f"{score.categories['CULTURE']:.2f}"
  assert printed[3:6] == [f"{score.categories[c]:.2f}" for c in ("BIOLOGY", "PHYSICS", "CHEMISTRY")]
  assert printed[-1] == f"{score.variants['bagel']:.2f}"


def test_a_doubled_id_counts_twice_and_true_counts_one(tmp_path):
  lines = [{"prompt_id": 1, "score": 1}, {"prompt_id": 1, "score": 0}, {"prompt_id": 2, "score": True},
           {"prompt_id": 3, "score": "1"}]
  (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
  score = _EDITIONS["verified"].aggregate(str(tmp_path))
  assert score.categories == {"CULTURE": 2 / 3}
  assert (score.n, score.missing, score.malformed) == (3, 997, 1)
  assert "prompt_id 1 occurs 2 times: every line counts" in score.messages
  strict = _EDITIONS["verified"].aggregate(str(tmp_path), rules="strict")
  assert strict.categories["CULTURE"] == 2 / 401
  assert strict.score == pytest.approx(0.4 * 2 / 401)


def test_more_files_than_belong_together_are_refused(recorded):
  with pytest.raises(ValueError, match="put those of one model and edition"):
    _EDITIONS["legacy"].aggregate(str(recorded / "wise"))


def _prompts(folder, suffix=""):
  for name, ids in (("cultural_common_sense", (1, 2)), ("spatio-temporal_reasoning", (401, 600)),
                    ("natural_science", (701,))):
    (folder / f"{name}{suffix}.json").write_text(json.dumps([
        {"Prompt": f"p{i}", "Explanation": f"e{i}", "Category": "c", "Subcategory": "s", "prompt_id": i}
        for i in ids]))


def test_judgements_come_back_as_they_were_written(tmp_path):
  _prompts(tmp_path)
  benchmark = _EDITIONS["legacy"]
  items = benchmark.read_items(str(tmp_path))
  assert [(i.id, i.category) for i in items] == [
      ("1", "CULTURE"), ("2", "CULTURE"), ("401", "TIME"), ("600", "SPACE"), ("701", "BIOLOGY")]
  assert benchmark.output_path(items[3], 0) == "600.png"
  answer = "Consistency: 2\nRealism: 2\nAesthetic Quality: 2"
  judgements = [base.Judgement(i.id, 0, {"": answer}, benchmark.parse({"": answer})) for i in items[1:]]
  judgements.append(base.Judgement("1", 0, {"": "no"}, None, "refused"))
  benchmark.write_judgements(str(tmp_path / "out"), items, judgements)
  score = benchmark.aggregate(str(tmp_path / "out"), items=str(tmp_path))
  assert (score.n, score.missing) == (4, 1)
  assert list(score.categories.values()) == pytest.approx([1] * 4)
  full = json.loads((tmp_path / "out/cultural_common_sense_full_results.json").read_text())
  assert full[0] == {"prompt_id": 1, "prompt": "p1", "key": "e1", "image_path": "1.png", "evaluation": "no"}


@pytest.mark.parametrize(("name", "suffix"), [
    ("wise", ""), ("wise-rewrite", "_rewrite"), ("wise-verified", "_verified")])
def test_prompts_of_the_three_editions_are_never_mixed(tmp_path, name, suffix):
  for other in ("", "_rewrite", "_verified"):
    _prompts(tmp_path, other)
  benchmark = base.find(name)
  assert len(benchmark.read_items(str(tmp_path))) == 5
  assert len(benchmark.read_items(f"{tmp_path}/natural_science{suffix}.json")) == 1
  for other, edition in (("", "wise"), ("_rewrite", "wise-rewrite"), ("_verified", "wise-verified")):
    if edition != name:
      with pytest.raises(ValueError, match=f"holds the prompts of {edition}, not of {name}"):
        benchmark.read_items(f"{tmp_path}/natural_science{other}.json")
  (tmp_path / f"natural_science{suffix}.json").unlink()
  lacks = rf"lacks natural_science{suffix}\.json: the prompts of {name}$"
  with pytest.raises(FileNotFoundError, match=lacks):
    benchmark.read_items(str(tmp_path))
  if name != "wise":
    (tmp_path / "merge.json").write_text((tmp_path / f"cultural_common_sense{suffix}.json").read_text())
    assert len(benchmark.read_items(f"{tmp_path}/merge.json")) == 2


def test_rewritten_prompts_have_a_result_of_their_own(recorded, tmp_path):
  plain, rewritten = base.find("wise"), base.find("wise-rewrite")
  for name in ("legacy_culture", "legacy_science", "legacy_spacetime"):
    (tmp_path / f"{name}.jsonl").write_bytes((recorded / f"wise/{name}.jsonl").read_bytes())
  a, b = (result.build(one, one.aggregate(str(tmp_path)), str(tmp_path), judged_by="gpt")
          for one in (plain, rewritten))
  assert a["score"] == b["score"]  # the same rules
  assert b["published"] == []
  assert [field for field, *_ in comparing.compare(a, b)["forbids"]] == ["benchmark", "revision"]


_SCRIPT = '''
def build_evaluation_messages(prompt_data, image_base64):
  return [
      {"role": "system", "content": [{"type": "text", "text": "made up"}]},
      {"role": "user", "content": [
          {"type": "text", "text": f"""P: "{prompt_data['Prompt']}" E: "{prompt_data["Explanation"]}" """},
          {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image_base64}"}}]}]
'''


def test_the_judges_prompt_comes_from_the_users_copy(tmp_path):
  _prompts(tmp_path)
  benchmark = _EDITIONS["legacy"]
  (tmp_path / "gpt_eval.py").write_text(_SCRIPT)
  prompts = benchmark.read_prompts(str(tmp_path / "gpt_eval.py"))
  (request,) = benchmark.judge_requests(benchmark.read_items(str(tmp_path))[0], [b"file"], prompts)
  body = request.body("gpt")
  assert body["messages"][1]["content"][0]["text"] == 'P: "p1" E: "e1" '
  assert body["messages"][1]["content"][1]["image_url"]["url"] == "data:image/png;base64,ZmlsZQ=="
  assert (body["temperature"], body["max_tokens"]) == (0.0, 2000)
  (tmp_path / "other.py").write_text("import os\n")
  with pytest.raises(ValueError, match="no function that returns a list of chat messages"):
    benchmark.read_prompts(str(tmp_path / "other.py"))
  (tmp_path / "bad.py").write_text("def f(a, b):\n  return [{'role': open('x')}]\n")
  with pytest.raises(ValueError, match=r"line 2: open\('x'\)"):
    benchmark.read_prompts(str(tmp_path / "bad.py"))
  (tmp_path / "other_form.py").write_text(
      'RULES = "R: {p}"\ndef build(row, image):\n  text = RULES.format(p=row.get("Prompt"))\n'
      '  return [{"role": "user", "content": text}]\n')
  assert benchmark.read_prompts(str(tmp_path / "other_form.py")).messages({"Prompt": "a"}) == [
      {"role": "user", "content": "R: a"}]
