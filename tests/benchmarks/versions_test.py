"""What became worse between two sets of packages is named; what differs by noise is not."""

import json
import sys

import pytest

from benchmarks import versions

_BEFORE = {"memory MB": 100.0, "collectives": 0.0, "sent MB": 10.0, "trace CPU s": 8.0, "compile s": 30.0}


@pytest.mark.parametrize(("after", "found"), [
    ({}, []), ({"memory MB": 100.5, "compile s": 36.0}, []), ({"memory MB": 90.0}, []),
    ({"memory MB": 102.0, "trace CPU s": 12.0}, ["memory MB", "trace CPU s"]),
    ({"collectives": 1.0}, ["collectives"])])
def test_growth_beyond_noise_is_worse(after, found):
  assert versions.worse(_BEFORE, _BEFORE | after) == found


def test_both_sides_are_measured_by_their_own_interpreter(monkeypatch, tmp_path, capsys):
  asked = []

  def measured(python, stage, topology):
    asked.append((python, stage, topology))
    return {"versions": {"jax": python}, "row": _BEFORE | {"sent MB": 10.0 if python == "old" else 20.0}}

  monkeypatch.setattr(versions, "measure_with", measured)
  monkeypatch.setattr(versions, "_ROOT", tmp_path)
  monkeypatch.setattr(sys, "argv", ["versions", "--before=old", "--after=new", "--stages=gen2:1b"])
  assert versions.main() == 1
  assert asked == [("old", "gen2:1b", "v5e:16x16"), ("new", "gen2:1b", "v5e:16x16")]
  out = capsys.readouterr().out
  assert "jax old → new" in out
  assert "| gen2:1b | sent MB | 10 | 20 | +100.0% **worse** |" in out
  kept = json.loads((tmp_path / "benchmarks/results/versions_v5e_16x16.json").read_text())
  assert kept["rows"]["gen2:1b"]["after"]["sent MB"] == 20


def test_an_interpreter_that_fails_is_named():
  with pytest.raises(RuntimeError, match=r"(?s)stage9:1b.*No module named"):
    versions.measure_with(sys.executable, "stage9:1b", "v5e:2x2")
