"""Processes as the hosts of a run: killed, stopped, continued by fewer; no example lost or repeated."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from tests import micro, processes
from unilip_jax.common import errors
from unilip_jax.training import metrics
from unilip_jax.weights import orbax_io

_SILENCE = 10  # seconds; the others end this much after a kill, and what ending takes
_STAGE_1 = dict(total_steps=6, checkpoint_every_steps=3, eval__sets=())
_GEN_2 = dict(total_steps=6, checkpoint_every_steps=100)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return micro.write_images(tmp_path_factory.mktemp("hosts") / "images")


def _start(stage, images, workdir, count, fields):
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(workdir / "xla"))
  return processes.Processes(
      "tests.process",
      ["train", stage, str(images), str(workdir), *(f"{k}={v!r}" for k, v in fields.items())], count,
      env={"SILENCE": str(_SILENCE), "JAX_COMPILATION_CACHE_DIR": cache})


def _finish(started, status=0):
  with started:
    outputs = started.wait(500)
  for index, (code, text) in outputs.items():
    assert code == status, (index, text[-3000:])
  return outputs


def _ids(workdir, count):
  """Returns the stream positions that all processes read together, by step."""
  parts = [[json.loads(line) for line in (workdir / f"ids-{count}-{i}.jsonl").read_text().splitlines()]
           for i in range(count)]
  return [sorted(i for part in step for i in part) for step in zip(*parts)]


def _wait_for(condition, started, seconds=480):
  deadline = time.monotonic() + seconds
  while not condition():
    assert all(p.poll() is None for p in started.started.values()), started.wait(5)
    assert time.monotonic() < deadline, "the run did not get there in time"
    time.sleep(0.05)


def _steps(workdir):
  folder = workdir / "checkpoints"
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def _losses(workdir):
  return {r["step"]: r["train/loss"] for r in metrics.read(workdir) if "train/loss" in r}


@pytest.mark.slow
def test_a_run_ends_with_a_message_after_a_kill_and_continues_bit_exactly(images, tmp_path):
  uninterrupted, parts = tmp_path / "uninterrupted", tmp_path / "parts"
  _finish(_start("stage1", images, uninterrupted, 2, _STAGE_1))
  with _start("stage1", images, parts, 2, _STAGE_1 | {"sleep": 1.0}) as started:
    file = parts / "ids-2-1.jsonl"
    _wait_for(lambda: 3 in _steps(parts) and len(file.read_text().splitlines()) >= 4, started)
    started.started[0].kill()  # which coordinates
    killed = time.monotonic()
    outputs = started.wait(120)
    took = time.monotonic() - killed
  status, text = outputs[1]
  assert status == errors.AGAIN, text[-3000:]
  assert "gone or cut off: process 0 (" in text
  assert took < _SILENCE + 15, took
  assert _steps(parts) == [3], "killed too late to test anything"
  _finish(_start("stage1", images, parts, 2, _STAGE_1))
  for item in ("params", "ema", "optimizer"):
    left, right = (orbax_io.read_tree(w / "checkpoints/6" / item) for w in (uninterrupted, parts))
    jax.tree.map(np.testing.assert_array_equal, left, right)
  assert _losses(uninterrupted) == _losses(parts)
  assert _ids(uninterrupted, 2)[3:] == _ids(parts, 2), "the rerun read the batches that were lost"


@pytest.mark.thorough
def test_gen_2_stops_together_on_a_signal_and_two_hosts_continue_what_four_began(tmp_path):
  workdir = tmp_path / "run"
  with _start("gen2", "", workdir, 4, _GEN_2 | {"sleep": 1.0}) as started:
    file = workdir / "ids-4-2.jsonl"
    _wait_for(lambda: file.exists() and len(file.read_text().splitlines()) >= 2, started)
    started.started[2].send_signal(signal.SIGTERM)
    outputs = started.wait(120)
  assert {code for code, _ in outputs.values()} == {errors.AGAIN}, outputs[0][1][-3000:]
  (step,) = _steps(workdir)
  assert 2 <= step < 6, "the signal came too late to test anything"
  first = _ids(workdir, 4)[:step]
  before = _losses(workdir)
  _finish(_start("gen2", "", workdir, 2, _GEN_2))
  batch = micro.text_config("gen2").batch_size
  read = first + _ids(workdir, 2)
  assert read == [list(range(i * batch, (i + 1) * batch)) for i in range(6)], "none lost, none twice"
  losses = _losses(workdir)
  assert sorted(losses) == [1, 2, 3, 4, 5, 6]
  assert {at: losses[at] for at in before} == before
  assert np.isfinite(list(losses.values())).all()
