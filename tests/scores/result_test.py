"""A result states what its score depends on, and whether another may be compared with it."""

import json

import pytest

from tests.scores import fakes
from unilip_jax.common import json_file
from unilip_jax.scores import base, comparing, judge, provenance, result


@pytest.fixture
def scored(tmp_path):
  """A folder of judgements with the judge's record and that of make."""
  items = fakes.Colors().read_items("")
  rows = [{"id": item.id, "k": k, "score": float((i + k) % 3)}
          for i, item in enumerate(items) for k in range(2)]
  provenance.write_lines(tmp_path / "scores.jsonl", rows)
  (tmp_path / judge.FOLDER).mkdir()
  json_file.write(tmp_path / judge.FOLDER / judge.ABOUT, {
      "benchmark": "colors", "revision": "r1", "model": "judge-2025-01-01", "model_requested": "judge-x",
      "last_answer": "2026-01-02T03:04:05Z", "tries": 2, "prompts": {}, "items_sha256": "abc",
      "make": {"steps": 20, "guidance": 4.5, "seed": 42, "checkpoint": "c", "protocol": "official",
               "weights_fingerprint": "f00"}})
  return tmp_path


def _build(folder, **options):
  benchmark = fakes.Colors()
  return result.build(benchmark, benchmark.aggregate(str(folder)), str(folder), **options)


def test_a_result_states_judge_images_files_and_interval(scored):
  built = _build(scored)
  assert built["score"] == 1.0
  assert (built["n"], built["missing"], built["malformed"]) == (24, 0, 0)
  assert (built["judge"]["model"], built["make"]["steps"]) == ("judge-2025-01-01", 20)
  assert "make" not in built["judge"]
  assert built["items"]["sha256"] == "abc"
  assert built["source"]["files"].keys() == {"scores.jsonl"}
  assert built["interval"]["low"] < 1.0 < built["interval"]["high"]
  assert built["interval"] == _build(scored)["interval"]
  assert built["versions"].keys() == {"unilip_jax", "jax", "numpy", "pillow"}
  result.write(str(scored / "out"), built)
  assert result.read(str(scored / "out")) == json.loads(json.dumps(built))
  row = (scored / "out/results.md").read_text().splitlines()[2]
  for text in ("| colors, r1 |", "| 1 (micro, official rules) |", "judge-2025-01-01 2026-01-02",
               "protocol official, steps 20, guidance 4.5, seed 42, weights_fingerprint f00"):
    assert text in row


def test_an_interval_of_constant_values_has_no_width_and_none_is_without_values():
  values = tuple(base.Value(str(i), "a", 1.0) for i in range(5))
  score = base.Score(1.0, {"a": 1.0}, 5, 0, 0, "official", values=values)
  interval = result._interval(fakes.Colors(), score)
  assert (interval["low"], interval["high"]) == (1.0, 1.0)
  assert result._interval(fakes.Colors(), base.Score(None, {}, 0, 0, 0, "official")) is None


def test_what_is_not_a_result_is_named(scored):
  with pytest.raises(FileNotFoundError, match="aggregate --out"):
    result.read(str(scored))
  (scored / "results.json").write_text("{}")
  with pytest.raises(ValueError, match=r"is not a results\.json"):
    result.read(str(scored))
  for field in ("rules", "score", "n", "interval", "items"):
    built = _build(scored)
    json_file.write(scored / "results.json", {k: v for k, v in built.items() if k != field})
    with pytest.raises(ValueError, match=f"results.json is damaged: it lacks `{field}`"):
      result.read(str(scored))
    json_file.write(scored / "results.json", built | {field: [3]})
    with pytest.raises(ValueError, match=f"`{field}` is "):
      result.read(str(scored))
  json_file.write(scored / "results.json", {"fid": 1.0, "protocol": "clean-fid"})
  with pytest.raises(ValueError, match="it lacks `method`; it is no output of `fid --json`"):
    result.read(str(scored))
  about = json.loads((scored / judge.FOLDER / judge.ABOUT).read_text())
  json_file.write(scored / judge.FOLDER / judge.ABOUT, about | {"revision": "r0"})
  with pytest.raises(ValueError, match=r"was judged for colors \(r0\), not colors \(r1\)"):
    _build(scored)


def test_the_field_that_forbids_a_comparison_is_named(scored):
  a = _build(scored)
  assert comparing.compare(a, a)["comparable"]
  changes = {
      "benchmark": {"benchmark": "other"}, "revision": {"revision": "r2"}, "rules": {"rules": "strict"},
      "items.sha256": {"items": {"sha256": "def"}}, "published_variant": {"published_variant": "macro"},
      "judge.model": {"judge": a["judge"] | {"model": "judge-2025-06-01"}},
      "judge.tries": {"judge": a["judge"] | {"tries": 1}}, "n": {"n": 23, "missing": 1}}
  for field, change in changes.items():
    verdict = comparing.compare(a, a | change)
    assert [f for f, *_ in verdict["forbids"]] == [field]
    assert f"not comparable\n  {field}: " in comparing.as_text(verdict)


def test_how_images_were_made_may_differ_and_an_unknown_judge_may_not(scored):
  a = _build(scored)
  b = a | {"make": a["make"] | {"steps": 50}, "score": 1.25}
  verdict = comparing.compare(a, b)
  assert verdict["comparable"]
  assert verdict["differs"] == [["make.steps", 20, 50]]
  assert verdict["difference"] == 0.25
  assert verdict["intervals_overlap"]
  others = comparing.compare(a, a | {"make": None})
  assert others["comparable"]
  assert "make.steps" in others["unknown"]
  unknown = comparing.compare(a, a | {"judge": None})
  assert not unknown["comparable"]
  assert unknown["forbids"][0][0] == "judge.model"


def test_the_command_ends_with_status_1_if_a_field_forbids_it(scored, capsys):
  result.write(str(scored / "a"), _build(scored))
  result.write(str(scored / "b"), _build(scored) | {"rules": "strict"})
  comparing.main([str(scored / "a"), str(scored / "a/results.json")])
  assert capsys.readouterr().out.startswith("comparable\n")
  with pytest.raises(SystemExit, match="1"):
    comparing.main([str(scored / "a"), str(scored / "b"), "--json"])
  assert json.loads(capsys.readouterr().out)["comparable"] is False


def test_frechet_distances_of_other_preprocessing_or_images_are_not_comparable(tmp_path):
  first = {"fid": 3.5, "protocol": "torch-fidelity", "method": "symmetric", "weights": "f00", "n": 50,
           "images": "a", "reference": "r-f00", "reference_images": "r"}
  def verdict(**change):
    for name, value in (("a", first), ("b", first | change)):
      json_file.write(tmp_path / f"{name}.json", value)
    return comparing.compare(*(result.read(str(tmp_path / f"{name}.json")) for name in "ab"))

  assert verdict(images="b", fid=4.0)["comparable"]
  assert verdict(images="b", fid=4.0)["difference"] == 0.5
  for field, name in (("metric.protocol", "protocol"), ("metric.method", "method"),
                      ("metric.weights", "weights"), ("items.sha256", "reference_images")):
    assert [f for f, *_ in verdict(**{name: "other"})["forbids"]] == [field]
  assert [f for f, *_ in verdict(n=49)["forbids"]] == ["metric.n"]
