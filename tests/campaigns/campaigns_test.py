"""Short runs of the campaigns, in their own processes; the long ones are opt-in: `pytest -m campaign`."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import cpu_devices
from tests.campaigns import damage, kill, soak

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(name, out, *arguments, expect=0):
  done = subprocess.run(
      [sys.executable, "-m", f"tests.campaigns.{name}", *arguments, f"--out={out}"], cwd=_ROOT,
      env=cpu_devices.environment(),
      capture_output=True, text=True, timeout=3600, check=False)
  assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
  return json.loads(out.read_text())


def test_damage_is_noticed(tmp_path):
  subjects = "checkpoint,run's weights,imported folder,safetensors,workdir,tars,tar index,folder,prepared"
  result = _run("damage", tmp_path / "out.json", "--mutations=90", f"--only={subjects}")
  assert sum(result["counts"].values()) == 90


def test_a_killed_preparation_and_a_killed_export_end_as_if_never_killed(tmp_path):
  result = _run("kill", tmp_path / "out.json", "--kills=3", "--only=prepare,export")
  assert sum(result["kills"].values()) == 3


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "arguments"), [
    ("damage", ["--mutations=2000"]), ("kill", ["--kills=200"]),
    ("soak", ["--minutes=15", "--calls=500"]), ("hostile", ["--requests=2000"]),
], ids=lambda value: value if isinstance(value, str) else "")
def test_campaign(tmp_path, name, arguments):
  _run(name, tmp_path / "out.json", *arguments)


def test_outcomes_are_told_apart():
  """The judge itself: what counts as noticed."""
  right = {"image 1": "a", "image 2": "b"}
  captions = lambda name: name.startswith("image ")
  nothing = lambda name: False
  judge = lambda found, free, notes=(): damage._judge(found, right, {"image 0": "c"}, free, notes)[0]
  assert judge(dict(right), nothing) == "sound"
  assert judge({"image 1": "a"}, captions) == "silent"
  assert judge({"image 1": "a"}, captions, ["1 record is broken"]) == "fallback"
  assert judge({"image 1": "x", "image 2": "b"}, nothing, ["a warning"]) == "garbage"
  assert judge({"image 1": "x", "image 2": "b"}, captions) == "unverified"
  assert judge({"image 1": "a", "image 3": "b"}, captions, ["a warning"]) == "garbage"
  assert judge({"image 0": "c"}, nothing) == "silent"
  assert judge({"image 0": "c"}, nothing, ["step 4 is damaged"]) == "fallback"


def test_differences_are_listed():
  assert kill.differences({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == []
  assert kill.differences({"a": "1", "b": "2"}, {"a": "3", "c": "2"}) == [
      "a: differs", "b: missing", "c: left over"]


def _write_run(folder, loss, seconds, steps):
  """A workdir's own files after starts at `steps`."""
  folder.mkdir()
  row = {"step": 2, "time": seconds, "train/loss": loss, "seconds/step": seconds, "rate/goodput": 0.5}
  totals = json.dumps({"step": 2, "time": seconds, "seconds/step": seconds}) + "\n"
  (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + totals * len(steps))
  (folder / "ledger.json").write_text(json.dumps({"began": seconds, "ended": True}))
  starts = [{"step": step, "time": seconds} for step in steps]
  (folder / "run.json").write_text(json.dumps({"id": str(folder), "count": len(steps), "starts": starts}))


def test_a_run_that_was_killed_may_differ_in_times_and_starts_alone(tmp_path):
  _write_run(tmp_path / "whole", 0.25, 10.0, [0])
  _write_run(tmp_path / "killed", 0.25, 17.0, [0, 0, 2])
  _write_run(tmp_path / "other", 0.26, 10.0, [0])
  _write_run(tmp_path / "back", 0.25, 10.0, [2, 0])
  whole, killed, other, back = (
      kill.summary(tmp_path / name) for name in ("whole", "killed", "other", "back"))
  assert len(whole) == 3
  assert kill.differences(whole, killed) == []
  assert kill.differences(whole, other) == [
      'metrics.jsonl: differs; {"step": 2, "train/loss": 0.26} for {"step": 2, "train/loss": 0.25}']
  assert kill.differences(whole, back) == ["run.json: differs"]


def _samples(resident=0.0, in_use=0.0, blocks=0.0):
  """15 minutes at ten samples a second: 300 MB that come and go in 20 s, noise, growth a minute."""
  noise = np.random.default_rng(0).normal(0, 5e6, 9000)
  wave = [3e8 * (t % 200) / 200 + noise[t] for t in range(9000)]
  return [soak.Sample(t / 600, int(5e8 + resident * t / 600 + wave[t]),
                      int(2e8 + in_use * t / 600 + wave[t] / 10), int(1e6 + blocks * t / 600), 50, 50)
          for t in range(9000)]


@pytest.mark.parametrize(("growth", "failed"), [
    ({}, []), ({"resident": 3e6}, ["memory"]), ({"resident": 1e6}, []), ({"in_use": 5e5}, ["in_use"]),
    ({"blocks": 2e3}, ["blocks"])])
def test_the_soak_tells_growth_from_rise_and_fall(growth, failed):
  assert soak.report("train", _samples(**growth))["failed"] == failed


def test_the_soak_refuses_to_judge_a_handful_of_samples():
  with pytest.raises(ValueError, match="39 samples say nothing"):
    soak.report("train", _samples()[:39])
