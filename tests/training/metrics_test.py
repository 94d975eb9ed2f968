"""metrics.jsonl has each step once across restarts."""

import json
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from tests import cpu_devices
from unilip_jax.training import metrics


def _steps(workdir):
  return [json.loads(line)["step"] for line in (workdir / metrics.FILE).read_text().splitlines()]


def test_rows_are_readable_while_the_run_goes_on(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(10, {"train/loss": jnp.float32(0.5), "rate/mfu": 0.25})
    (row,) = metrics.read(tmp_path)
    assert (row["step"], row["train/loss"], row["rate/mfu"]) == (10, 0.5, 0.25)
    assert abs(row["time"] - time.time()) < 60


def test_resume_drops_the_steps_that_will_be_made_again(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    for step in (10, 20, 30, 40):
      writer.write(step, {"train/loss": step})
  with metrics.Writer(tmp_path, start_step=20) as writer:
    assert _steps(tmp_path) == [10, 20]
    for step in (30, 40, 50):
      writer.write(step, {"train/loss": -step})
  assert _steps(tmp_path) == [10, 20, 30, 40, 50]
  assert [row["train/loss"] for row in metrics.read(tmp_path)] == [10, 20, -30, -40, -50]


def test_torn_last_line_of_a_killed_run_is_dropped(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(1, {"train/loss": 1.0})
  with (tmp_path / metrics.FILE).open("a") as f:
    f.write('{"step": 2, "train/lo')
  assert [row["step"] for row in metrics.read(tmp_path)] == [1]
  with metrics.Writer(tmp_path, start_step=5) as writer:
    writer.write(6, {"train/loss": 1.0})
  assert _steps(tmp_path) == [1, 6]


def test_training_and_evaluation_of_one_step_read_as_one_row(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(3, {"train/loss": 1.0})
    assert not writer.has_evaluation(3)
    writer.write(3, {"eval/shapes/psnr": 20.0})
    assert writer.has_evaluation(3)
  (row,) = metrics.read(tmp_path)
  assert row["train/loss"] == 1.0
  assert row["eval/shapes/psnr"] == 20.0
  with metrics.Writer(tmp_path, start_step=3) as writer:
    assert writer.has_evaluation(3)
  with metrics.Writer(tmp_path, start_step=2) as writer:
    assert not writer.has_evaluation(3)


def test_non_finite_values_survive_as_valid_json(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(1, {"a": np.float32("nan"), "b": np.float32("inf"), "c": -np.inf})

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  json.loads((tmp_path / metrics.FILE).read_text(), parse_constant=refuse)
  (row,) = metrics.read(tmp_path)
  assert np.isnan(row["a"])
  assert (row["b"], row["c"]) == (np.inf, -np.inf)


def test_tensorboard_gets_the_scalars(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(7, {"train/loss": 0.125})
  (file,) = (tmp_path / "tensorboard").iterdir()
  data, offset, found = file.read_bytes(), 0, []
  while offset < len(data):  # TFRecord: uint64 length, crc, payload, crc
    length = int.from_bytes(data[offset:offset + 8], "little")
    event = event_pb2.Event.FromString(data[offset + 12:offset + 12 + length])
    found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    offset += 16 + length
  assert (7, "train/loss", 0.125) in found


def test_names_of_scores_are_accepted_by_the_writer(tmp_path, caplog, capsys):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    writer.write(1, {"eval/scenes/exact/3 objects": 0.5, "eval/t2i/right/left of": 0.25})
  assert "illegal" not in caplog.text + "".join(capsys.readouterr())
  (row,) = metrics.read(tmp_path)
  assert row["eval/scenes/exact/3 objects"] == 0.5  # the run's own file keeps the name


def test_missing_run_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
    metrics.read(tmp_path)


@pytest.mark.parametrize("damage", [b"\0\0\0\0\n", b"[1]\n", b'{"step": "x"}\n', b'{"step": 2, "a": [1]}\n',
                                    b"\xff\xfe\n", b'{"step": 2, "tr\n', b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_named_and_removed_when_the_run_continues(tmp_path, damage, caplog):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    for step in (1, 3):
      writer.write(step, {"train/loss": step})
  first, second = (tmp_path / metrics.FILE).read_bytes().splitlines(keepends=True)
  content = first + damage + second + b"\0\0\0"  # zeros at the end: a power failure
  (tmp_path / metrics.FILE).write_bytes(content)
  if damage.strip(b"\0\n"):
    with pytest.raises(ValueError, match=rf"{tmp_path}/metrics.jsonl is damaged:\n  line 2: "):
      metrics.read(tmp_path)
  else:
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 3]
  with metrics.Writer(tmp_path, start_step=3) as writer:
    writer.write(4, {"train/loss": 4})
  assert _steps(tmp_path) == [1, 3, 4]
  if damage.strip(b"\0\n"):
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content
    assert "metrics.jsonl is damaged; the run continues without these lines" in caplog.text


def test_a_writer_starts_without_pytorch(tmp_path):
  code = ("import sys; from unilip_jax.training import metrics; "
          f"metrics.Writer({str(tmp_path)!r}, start_step=0); "
          "assert 'torch' not in sys.modules; import torch")
  subprocess.run([sys.executable, "-c", code], env=cpu_devices.environment(), check=True, timeout=120)
