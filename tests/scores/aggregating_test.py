"""`evals aggregate` and `evals list` print what is documented."""

import json
import shutil
import subprocess
import sys

import pytest

from unilip_jax.scores import aggregating, base, listing

_SOURCES = {
    **dict.fromkeys(("geneval", "geneval-long", "geneval-hf"), "geneval/results.jsonl"),
    "imgedit": "imgedit", "imgedit-hard": "imgedit/uge_result.json", "gedit": "gedit/results",
    "gedit-cn": "gedit/results", "dpg": "dpg", "dpg-1": "dpg", "mme": "mme/answers",
    "mmbench": "mcq/circular.json", "seed": "mcq/vanilla.json", "ai2d": "mcq/vanilla.json",
    "mmvp": "mcq/mmvp.json", "mmmu": "mmmu", "mmvet": "mmvet/official.json",
    **dict.fromkeys(("wise", "wise-rewrite"), "legacy"), "wise-verified": "verified"}
_LARGEST = {"imgedit": 5, "imgedit-hard": 5, "gedit": 10, "gedit-cn": 10, "mme": 2000}  # else a fraction


@pytest.fixture(scope="module")
def sources(recorded, tmp_path_factory):
  """{name: path} of each official scorer's files; those of WISE are a folder of three."""
  found = {name: recorded / path for name, path in _SOURCES.items()}
  for edition in ("legacy", "verified"):
    folder = tmp_path_factory.mktemp(edition)
    for file in (recorded / "wise").glob(f"{edition}_*.jsonl"):
      shutil.copy(file, folder)
    found |= {name: folder for name, path in _SOURCES.items() if path == edition}
  return found


def _aggregate(name, source, capsys, *options):
  aggregating.main([f"--benchmark={name}", f"--source={source}", *options, "--json"])
  return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN


def test_every_benchmark_with_official_files_is_here():
  assert {name for name in base.names() if not name.startswith("shapes")} == _SOURCES.keys()


@pytest.mark.parametrize("name", _SOURCES)
@pytest.mark.parametrize("rules", base.RULES)
def test_json_holds_score_categories_and_counts(sources, capsys, name, rules):
  score = _aggregate(name, sources[name], capsys, f"--rules={rules}")
  assert {"score", "categories", "n", "missing", "malformed", "variants", "published"} <= score.keys()
  assert (score["rules"], score["benchmark"]) == (rules, name)
  assert 0 <= score["score"] <= _LARGEST.get(name, 1)
  # A task of MME is scored up to 200.
  assert all(0 <= v <= _LARGEST.get(name, 1) for v in score["categories"].values() if v is not None)
  assert [type(score[count]) for count in ("n", "missing", "malformed")] == [int] * 3
  assert score["n"] > 0
  assert score["published_variant"] in ("", *score["variants"])


def test_a_file_without_a_record_says_so(tmp_path, capsys):
  (tmp_path / "results.jsonl").write_text("")
  score = _aggregate("geneval", tmp_path, capsys)
  assert (score["score"], score["n"], score["messages"]) == (None, 0, ["nothing was scored"])


def test_text_marks_the_published_variant(recorded, capsys):
  aggregating.main(["--benchmark=imgedit", f"--source={recorded / 'imgedit'}"])
  text = capsys.readouterr().out
  assert "imgedit (official rules): 3.1711\n  n 53, missing 1, malformed 36\n" in text
  assert "macro                        3.1711 *\n" in text
  assert "UniLIP-3B                    3.94  (UniLIP README; judge not stated)" in text


def test_every_benchmark_is_listed(capsys):
  listing.main([])
  text = capsys.readouterr().out
  assert all(f"{name} " in text for name in base.names())
  assert set(_SOURCES) <= set(base.names())
  assert all(base.find(name).name == name for name in base.names())


def test_published_scores_are_on_the_scale_of_the_score():
  limits = {"imgedit": 5, "imgedit-hard": 5, "gedit": 10, "gedit-cn": 10, "mme": 2000}
  for name in base.names():
    for published in base.find(name).published:
      assert 0 < published.score <= limits.get(name, 1)


def test_an_interval_holds_the_score(recorded):
  benchmark = base.find("geneval")
  score = benchmark.aggregate(str(recorded / "geneval"))
  low, high = base.interval(benchmark, score.values, samples=200)
  assert low < score.score < high
  assert (low, high) == base.interval(benchmark, score.values, samples=200)


def test_wrong_use_is_explained(recorded):
  with pytest.raises(ValueError, match="unknown benchmark 'wize'; known: ai2d, dpg"):
    base.find("wize")
  with pytest.raises(ValueError, match="unknown rules 'lax'; choose official or strict"):
    base.find("wise").aggregate("x", rules="lax")
  with pytest.raises(FileNotFoundError, match="no score files of WISE at /nowhere"):
    base.find("wise").aggregate("/nowhere")


def test_the_command_starts_without_jax(recorded):
  code = ("import sys; sys.argv[1:] = ['aggregate', '--benchmark=imgedit', '--json', '--source=%s']\n"
          "from unilip_jax.evals import __main__ as m; m.main(); assert 'jax' not in sys.modules")
  out = subprocess.run([sys.executable, "-c", code % (recorded / "imgedit")], capture_output=True,
                       text=True, check=True)
  assert json.loads(out.stdout)["n"] == 53
