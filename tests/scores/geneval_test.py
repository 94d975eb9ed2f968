"""GenEval's rules and summary equal the official evaluator's recorded runs."""

import json

import numpy as np
from PIL import Image
import pytest

from unilip_jax.scores import geneval, geneval_rules

_BENCHMARK = geneval.GenEval()


def _options(recorded):
  names = {"max_overlap": float, "threshold": float, "max_objects": int}
  return geneval_rules.Options(**{k: names[k](v) for k, v in recorded.items()})


class _Scripted:
  """A detector that finds what was recorded."""

  name = "scripted"

  def __init__(self, case):
    self._case = case
    self._boxes = {c: np.array(b, np.float32).reshape(-1, 5) for c, b in case["detections"].items()}

  def detect(self, image):
    return {c: (b, None) for c, b in self._boxes.items()}

  def colors(self, crops, class_name):
    kept = self._case["kept"][class_name][:len(crops)]
    return [self._case["colors_by_score"][class_name][f"{box[4]:.4f}"] for box in kept]


def test_recorded_relations_and_overlaps(recorded):
  for case in json.loads((recorded / "geneval/geometry.json").read_text()):
    a, b = (np.array(case[k], np.float32) for k in "ab")
    assert sorted(geneval_rules.relations(a, b, case["position_threshold"])) == sorted(
        case["relations_of_a_to_b"])
    assert geneval_rules.iou(case["a"], case["b"]) == case["iou"]


def test_recorded_images_are_judged_equally(recorded):
  image = Image.new("RGB", (100, 100))
  cases = json.loads((recorded / "geneval/image_cases.json").read_text())
  assert len(cases) == 90
  for case in cases:
    line = geneval.judge_image(
        "a.png", image, case["metadata"], _Scripted(case), _options(case["options"]))
    assert line["correct"] == case["correct"]
    # Two relations that hold at once come in any order in the official reason.
    assert sorted(line["reason"].split()) == sorted(case["reason"].split())
    assert json.loads(line["details"]) == case["kept"]
    assert json.loads(line["metadata"]) == case["metadata"]


@pytest.mark.parametrize(("name", "options"), [
    ("grey", {}), ("original", {"bgcolor": "original"}), ("nocrop", {"crop": False})])
def test_recorded_crops_for_the_color_classifier(recorded, name, options):
  folder = recorded / "geneval"
  box = np.array(json.loads((folder / "crop.json").read_text())["box"], np.float32)
  mask = np.asarray(Image.open(folder / "crop_mask.png").convert("L")) > 0
  crop = geneval_rules.color_crop(
      Image.open(folder / "crop_source.png"), box, mask, geneval_rules.Options(**options))
  np.testing.assert_array_equal(np.asarray(crop), np.asarray(Image.open(folder / f"crop_{name}.png")))


def test_a_crop_without_a_mask_keeps_everything(recorded):
  folder = recorded / "geneval"
  box = np.array(json.loads((folder / "crop.json").read_text())["box"], np.float32)
  crop = geneval_rules.color_crop(
      Image.open(folder / "crop_source.png"), box, None, geneval_rules.Options())
  np.testing.assert_array_equal(np.asarray(crop), np.asarray(Image.open(folder / "crop_nomask.png")))


def test_recorded_summary(recorded):
  score = _BENCHMARK.aggregate(str(recorded / "geneval"))
  text = (recorded / "geneval/summary_stdout.txt").read_text()
  assert f"Total images: {score.n}\nTotal prompts: {score.details['prompts']}\n" in text
  assert f"% correct images: {score.variants['correct images']:.2%}\n" in text
  assert f"% correct prompts: {score.variants['correct prompts']:.2%}\n" in text
  for tag, value in score.categories.items():
    right, total = score.details["correct"][tag], score.details["images by tag"][tag]
    assert f"{tag:<16} = {value:.2%} ({right} / {total})\n" in text
  assert f"Overall score (avg. over tasks): {score.score:.5f}" in text
  assert (score.missing, score.malformed) == (11, 0)


def _line(folder, sample, correct, tag="counting", **more):
  return {"filename": f"x/{folder:05d}/samples/{sample:05d}.png", "tag": tag, "prompt": f"p{folder}",
          "correct": correct, "reason": "", "metadata": f"m{folder}", "details": "{}", **more}


def _write(path, lines):
  path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
  return str(path)


def test_an_uneven_set_is_counted_exactly(tmp_path):
  source = _write(tmp_path / "results.jsonl", [
      _line(0, 0, True), _line(0, 1, True), _line(1, 1, False),  # 1: sample 0 is absent
      _line(3, 0, True, "colors"), _line(3, 1, True, "colors"), _line(3, 1, True, "colors"),
      "not json", _line(4, 0, None, "colors"), _line(4, 1, False, "colors")])
  score = _BENCHMARK.aggregate(source)
  assert score.score == pytest.approx((2 / 3 + 3 / 4) / 2)
  assert (score.n, score.missing, score.malformed) == (7, 4, 2)  # 1/0, 2/0, 2/1, 4/0
  text = "\n".join(score.messages)
  for part in ("line 7: malformed: not JSON", "line 8: malformed: 'correct' is None",
               "x/00003/samples/00001.png occurs 2 times", "00001/samples/00000.png",
               "no image of prompts 00002"):
    assert part in text
  strict = _BENCHMARK.aggregate(source, rules="strict")
  assert strict.score == pytest.approx((2 / 6 + 3 / 5) / 2)


def test_the_prompts_file_says_what_is_missing(tmp_path):
  prompts = _write(tmp_path / "evaluation_metadata.jsonl", [
      {"tag": tag, "include": [{"class": "cup", "count": 1}], "prompt": f"p{i}"}
      for i, tag in enumerate(["colors", "counting", "counting"])])
  source = _write(tmp_path / "results.jsonl", [_line(1, 0, True), _line(1, 1, False)])
  score = _BENCHMARK.aggregate(source, rules="strict", items=prompts)
  assert score.missing == 4
  assert score.categories == {"counting": 1 / 4, "colors": 0}


def test_the_layout_is_the_official_one(tmp_path):
  record = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a",
            "index": "00007", "detailed_caption": "long"}
  source = _write(tmp_path / "geneval_prompt.jsonl", [record])
  (item,) = _BENCHMARK.read_items(source)
  assert (item.prompt, item.category, item.id) == ("a", "colors", "00007")
  assert geneval.GenEvalLong().read_items(source)[0].prompt == "long"
  assert _BENCHMARK.output_path(item, 3) == "00007/samples/00003.png"
  assert _BENCHMARK.side_files(item) == {"00007/metadata.jsonl": json.dumps(record).encode()}


def test_malformed_and_doubled_prompts_are_named(tmp_path):
  good = {"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": "a"}
  with pytest.raises(ValueError, match=r"line 2: malformed: no field 'prompt'"):
    _BENCHMARK.read_items(_write(tmp_path / "a.jsonl", [good, {"tag": "colors", "include": []}]))
  with pytest.raises(ValueError, match=r"line 1: malformed: 'include' is empty"):
    _BENCHMARK.read_items(_write(tmp_path / "c.jsonl", [good | {"include": []}]))
  with pytest.raises(ValueError, match=r"same id:\n  00001: 2 times"):
    _BENCHMARK.read_items(_write(tmp_path / "b.jsonl", [{**good, "index": "00001"}, good]))
