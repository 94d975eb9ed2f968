"""Metrics, grids and the config reach W&B and trackio; a sink that fails is counted and ends nothing.

The packages are small replacements with the same functions. UNILIP_REAL_SINKS=1 runs the last test with the
real packages, in an environment that has them.
"""

import io
import json
import os
import sys
import threading
import types

import numpy as np
from PIL import Image
import pytest

from tests import micro
from unilip_jax.training import metrics, sinks


class _Package(types.ModuleType):
  """What sinks.py uses of wandb and trackio; runs are in `runs`."""

  def __init__(self, name, on_log=lambda row: None, on_init=lambda: None):
    super().__init__(name)
    self.__spec__ = types.SimpleNamespace(origin=name, name=name)
    self.runs, self._on_log, self._on_init = [], on_log, on_init

  Settings = staticmethod(lambda **fields: fields)
  Image = staticmethod(lambda image, caption: (caption, image.size))

  def init(self, **options):
    self._on_init()
    rows = []

    def log(row, step=None):
      self._on_log(row)
      rows.append(row if step is None else (step, row))

    run = types.SimpleNamespace(
        options=options, rows=rows, log=log, axes=[], finished=[], finish=lambda: run.finished.append(True),
        define_metric=lambda name, **axis: run.axes.append((name, axis)))
    self.runs.append(run)
    return run


def _png():
  file = io.BytesIO()
  Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, "PNG")
  return file.getvalue()


def _config(*names, **fields):
  return micro.config("stage1", log__sinks=names, **fields)


def _run(config, workdir, steps=(1, 2)):
  opened = sinks.open_sinks(config, str(workdir), {"id": "abc12345", "commit": "c0ffee"})
  with metrics.Writer(workdir, start_step=0, sinks=opened) as writer:
    for step in steps:
      writer.write(step, {"train/loss": 1 / step})
    writer.write_image(2, "samples", _png())
  return metrics.read(workdir)


def test_both_sinks_get_the_config_metrics_and_grids(tmp_path, monkeypatch):
  packages = {name: _Package(name) for name in ("wandb", "trackio")}
  for name, package in packages.items():
    monkeypatch.setitem(sys.modules, name, package)
  workdir = tmp_path / "stage1"
  workdir.mkdir()
  config = _config("wandb", "trackio", log__offline=True)
  sinks.check(config)
  _run(config, workdir)
  (wandb,), (trackio,) = (package.runs for package in packages.values())
  assert wandb.rows == [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 0.5},
                        {"step": 2, "samples": ("step 2", (6, 4))}]
  assert trackio.rows == [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5}),
                          (2, {"samples": ("step 2", (6, 4))})]
  options = wandb.options
  assert (options["project"], options["name"], options["id"], options["resume"], options["mode"],
          options["dir"]) == ("unilip", "stage1", "abc12345", "allow", "offline", str(workdir))
  assert ("*", {"step_metric": "step"}) in wandb.axes  # W&B drops rows below its newest step
  assert trackio.options["name"] == "stage1-abc12345"
  for run in (wandb, trackio):
    assert run.options["config"]["optimizer"]["lr"] == config.optimizer.lr
    assert run.options["config"]["start"]["commit"] == "c0ffee"
    assert run.finished


def test_rows_that_a_sink_does_not_take_are_counted_and_named(tmp_path, monkeypatch, caplog):
  def refuse(row):
    if row.get("step") in (2, 3):
      raise ConnectionError("no route to the server")

  package = _Package("wandb", on_log=refuse)
  monkeypatch.setitem(sys.modules, "wandb", package)
  lost = threading.Event()
  record = sinks.Sinks.lost
  monkeypatch.setattr(sinks._Sink, "_lose", lambda self, why, lose=sinks._Sink._lose: (
      lose(self, why), lost.set()))
  opened = sinks.open_sinks(_config("wandb"), str(tmp_path), {"id": "a"})
  with metrics.Writer(tmp_path, start_step=0, sinks=opened) as writer:
    for step in (1, 2):
      writer.write(step, {"train/loss": 1.0})
    assert lost.wait(10)
    assert record(opened) == {"sinks/wandb_lost": 1}
    for step in (3, 4):
      writer.write(step, {"train/loss": 1.0})
  assert [row["step"] for row in package.runs[0].rows] == [1, 4]
  assert metrics.read(tmp_path)[2]["sinks/wandb_lost"] == 1
  assert "wandb lost 1 rows so far; training goes on: ConnectionError: no route" in caplog.text
  assert "wandb lost 2 of 4 rows, which metrics.jsonl has" in caplog.text


def test_a_sink_that_does_not_open_loses_its_rows_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
  def fail():
    raise TimeoutError("api.wandb.ai")

  monkeypatch.setitem(sys.modules, "wandb", _Package("wandb", on_init=fail))
  rows = _run(_config("wandb"), tmp_path, steps=range(1, 5))
  assert [row["train/loss"] for row in rows] == [1, 1 / 2, 1 / 3, 1 / 4]
  assert "wandb: open failed: TimeoutError: api.wandb.ai" in caplog.text
  assert "wandb lost 5 of 5 rows" in caplog.text


def test_a_sink_that_hangs_delays_neither_steps_nor_the_end_for_long(tmp_path, monkeypatch, caplog):
  for name, value in (("_ROWS", 2), ("_WAIT", 0.2)):
    monkeypatch.setattr(sinks, name, value)
  end = threading.Event()
  monkeypatch.setitem(sys.modules, "wandb", _Package("wandb", on_log=lambda row: end.wait(30)))
  rows = _run(_config("wandb"), tmp_path, steps=range(1, 8))
  end.set()
  assert len(rows) == 7
  assert "it is 2 rows behind" in caplog.text
  assert "wandb did not end within" in caplog.text


def test_what_is_missing_is_refused_with_the_remedy(tmp_path, monkeypatch):
  monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="names wandb, which is not installed: pip install wandb"):
    sinks.check(_config("wandb"))
  monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin="x"))
  for name in ("WANDB_API_KEY", "WANDB_MODE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("NETRC", str(tmp_path / "none"))
  with pytest.raises(ValueError, match=r"WANDB_API_KEY.*--config.log.offline=True"):
    sinks.check(_config("wandb"))
  monkeypatch.setenv("WANDB_API_KEY", "x")
  sinks.check(_config("wandb"))


@pytest.mark.skipif(not os.environ.get("UNILIP_REAL_SINKS"), reason="needs wandb and trackio, and seconds")
def test_the_real_packages_take_a_run_and_its_continuation(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  config = _config("wandb", "trackio", log__offline=True)
  sinks.check(config)
  _run(config, tmp_path)
  _run(config, tmp_path)
  assert "lost" not in caplog.text
  folders = list((tmp_path / "wandb").glob("offline-run-*-abc12345"))
  assert folders
  assert all(list(folder.glob("files/media/images/*.png")) for folder in folders)
  import trackio.sqlite_storage as storage

  name = f"{tmp_path.name}-abc12345"
  logs = storage.SQLiteStorage.get_logs("unilip", name)
  assert [row["step"] for row in logs] == [1, 2, 2] * 2
  assert json.loads(json.dumps(config.to_dict(), default=str))["log"]["project"] == "unilip"
