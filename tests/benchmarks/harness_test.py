"""The harness takes turns, names who runs out of memory, and writes one schema."""

import json
import sys

import jax
import numpy as np
import pytest

from benchmarks import harness


def test_measurements_take_turns():
  order = []
  seconds, errors = harness.measure(
      {n: lambda n=n: lambda: order.append(n) for n in "ab"}, repeats=3, warmup=1)
  assert order == list("ab" + "ab" * 3)
  assert not errors
  assert {n: len(s) for n, s in seconds.items()} == {"a": 3, "b": 3}


def _out_of_memory():
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate\nmore")


def test_who_runs_out_of_memory_is_named_and_the_others_run(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["x", "--size=tiny"])
  clock = iter(range(100))
  seconds, errors = harness.measure(
      {"unilip_jax": lambda: lambda: None, "large": lambda: _out_of_memory}, repeats=2, warmup=1,
      clock=lambda: float(next(clock)))
  rows = harness.compared("step", seconds, errors, work=8, unit="images/s")
  assert [r["name"] for r in rows] == ["step, unilip_jax", "step, large"]
  assert rows[0]["median"] == 8.0
  assert rows[1]["error"] == "out of memory: RESOURCE_EXHAUSTED: Out of memory while trying to allocate"
  harness.write(tmp_path / "r.json", "sample", {"size": "tiny"}, rows)
  written = json.loads((tmp_path / "r.json").read_text())
  assert written["command"] == "python -m benchmarks.sample --size=tiny"
  assert set(written) == {"benchmark", "command", "machine", "versions", "time", "settings", "rows"}


def test_other_errors_are_not_taken_for_memory():
  def broken():
    raise ValueError("wrong shape")
  with pytest.raises(ValueError, match="wrong shape"):
    harness.measure({"broken": lambda: broken}, repeats=1)


def test_the_ratio_is_of_calls_side_by_side():
  rows = harness.compared(
      "x", {"unilip_jax": [1.0, 2.0], "PyTorch": [2.0, 8.0]}, {}, work=1, unit="images/s")
  assert rows[-1]["name"] == "x, unilip_jax / PyTorch"
  assert rows[-1]["median"] == np.median([2.0, 4.0])
