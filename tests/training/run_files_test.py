"""A workdir tells how each start of its run was made."""

import json

from tests import micro
from unilip_jax.training import initial_state, run_files


def _start(folder, step=0, origin="random weights"):
  start = initial_state.Start(None, step, 8 * step, origin, continues=step > 0)
  return run_files.write(folder, micro.config("stage1", seed=7), start, "")


def test_each_start_is_recorded_under_one_id(tmp_path, monkeypatch):
  monkeypatch.setattr(run_files, "_MAX_STARTS", 3)
  ids = [_start(tmp_path, step)["id"] for step in (0, 10, 20, 30)]
  record = run_files.read(tmp_path)
  assert {record["id"], *ids} == {ids[0]}
  assert record["count"] == 4
  assert [start["step"] for start in record["starts"]] == [0, 20, 30], "the first and the newest are kept"
  start = record["starts"][-1]
  assert (start["seed"], start["processes"], start["devices"]) == (7, 1, "8 × cpu")
  assert {"command", "commit", "machine", "time", "versions"} <= start.keys()


def test_a_damaged_record_is_named_and_begun_again(tmp_path, caplog):
  (tmp_path / run_files.STARTS).write_text("{")
  _start(tmp_path)
  assert "run.json is damaged" in caplog.text
  assert run_files.read(tmp_path)["count"] == 1


def test_the_origin_of_the_first_weights_stays(tmp_path):
  _start(tmp_path, origin="runs/stage1")
  _start(tmp_path, 10, origin="this workdir, step 10")
  config = json.loads((tmp_path / "config.json").read_text())
  assert (config["started_from"], config["seed"]) == ("runs/stage1", 7)
