"""`evals aggregate` and `evals list` print what is documented."""

import json
import subprocess
import sys

import pytest

from unilip_jax.scores import aggregating, base, listing

_SOURCES = {
    "geneval": "geneval/results.jsonl", "imgedit": "imgedit", "gedit": "gedit/results", "dpg": "dpg",
    "mme": "mme/answers", "mmbench": "mcq/circular.json", "seed": "mcq/vanilla.json",
    "mmvp": "mcq/mmvp.json", "mmmu": "mmmu", "mmvet": "mmvet/official.json",
    "wise": "wise/legacy_science.jsonl",
    "wise-verified": "wise/verified_culture.jsonl"}


@pytest.mark.parametrize("name", _SOURCES)
@pytest.mark.parametrize("rules", base.RULES)
def test_json_holds_the_counts(recorded, capsys, name, rules):
  aggregating.main([f"--benchmark={name}", f"--source={recorded / _SOURCES[name]}", f"--rules={rules}",
                    "--json"])
  score = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN
  assert {"score", "categories", "n", "missing", "malformed", "variants", "published"} <= score.keys()
  assert score["rules"] == rules
  assert score["benchmark"] == name


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
