"""The stream is a pure function of seed and position; evaluation counts every example once."""

import json
import signal
import subprocess
import sys

import chex
import numpy as np
from PIL import Image
import pytest

from tests import micro, processes
from unilip_jax.data import decode, pipeline, sources, stream


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return micro.write_images(tmp_path_factory.mktemp("data") / "images", count=21)


def _stream(config, workdir, start=0, process=(0, 1)):
  return pipeline.train_stream(
      config, start_position=start, process_index=process[0], process_count=process[1],
      workdir=str(workdir))


def _take(config, workdir, count, start=0, process=(0, 1)):
  s = _stream(config, workdir, start, process)
  batches = [next(s) for _ in range(count)]
  s.close()
  return batches


def test_resuming_at_any_position_gives_the_same_batches(images, tmp_path):
  config = micro.config("stage2", images)
  config.data.flip = True
  batches = _take(config, tmp_path, 6)
  for start in (1, 4):
    for a, b in zip(batches[start:], _take(config, tmp_path, 6 - start, start * config.batch_size)):
      chex.assert_trees_all_equal(a, b)
  assert [int(b["_id"][0]) for b in batches] == [0, 8, 16, 24, 32, 40]


def test_processes_share_the_global_batch(images, tmp_path):
  config = micro.config("stage2", images)
  batches = _take(config, tmp_path, 2)
  parts = [_take(config, tmp_path, 2, process=(i, 4)) for i in range(4)]
  for step in range(2):
    for name in ("image", "_id"):
      np.testing.assert_array_equal(
          np.concatenate([p[step][name] for p in parts]), batches[step][name])


@pytest.fixture(scope="module")
def workers_run(images, tmp_path_factory):
  """Reads with 0, 1 and 2 workers, kills one; in its own process, whose main module workers import.

  At last the process starts two workers and is killed.
  """
  folder = tmp_path_factory.mktemp("workers")
  script = folder / "workers.py"
  script.write_text(f"""
import hashlib, json, multiprocessing, os, signal, sys
sys.path.insert(0, {str(micro.__file__)!r}.rsplit("/tests/", 1)[0])
from unilip_jax.data import pipeline
if __name__ == "__main__":
  import jax._src.xla_bridge as bridge
  from tests import micro
  digests, errors = [], []
  for workers in (0, 1, 2):
    config = micro.config("stage2", {str(images)!r}, data__workers=workers)
    s = pipeline.train_stream(config, start_position=8, process_index=0, process_count=1,
                              workdir={str(folder)!r})
    digest = hashlib.sha256()
    for _ in range(5):
      batch = next(s)
      digest.update(batch["image"].tobytes() + batch["_id"].tobytes())
    digests.append(digest.hexdigest())
    if workers:
      os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
      try:
        for _ in range(1000):
          next(s)
      except Exception as error:
        errors.append(f"{{type(error).__name__}} {{error}}")
    s.close()
  s = pipeline.train_stream(config, start_position=8, process_index=0, process_count=1,
                            workdir={str(folder)!r})
  next(s)
  children = [process.pid for process in multiprocessing.active_children()]
  print("RESULT", json.dumps([digests, errors, len(bridge._backends), children]), flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
""")
  out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240,
                       check=False)
  assert out.returncode == -signal.SIGKILL, out.stderr[-2000:]
  return json.loads(out.stdout.split("RESULT")[1])


def test_worker_processes_change_nothing_and_start_no_accelerator(workers_run):
  digests, _, backends, _ = workers_run
  assert len(digests) == 3
  assert len(set(digests)) == 1
  assert backends == 0, "reading data must not start an accelerator"


def test_a_killed_worker_is_an_error_not_a_hang(workers_run):
  _, errors, _, _ = workers_run
  assert len(errors) == 2  # with 1 worker, and with another one alive
  for error in errors:
    assert error.startswith("DataError a decoding process of the input pipeline died")


def test_a_killed_trainer_leaves_no_workers(workers_run):
  *_, children = workers_run
  assert len(children) == 2
  assert processes.end(children)


def test_broken_records_are_replaced_counted_and_named(images, tmp_path):
  folder = tmp_path / "mixed"
  micro.write_images(folder, count=20)
  (folder / "005.jpg").write_bytes((folder / "005.jpg").read_bytes()[:200])
  config = micro.config("stage2", folder)
  config.data.max_bad_fraction = 0.01  # of at least 1000 records: 10
  s = _stream(config, tmp_path)
  batches = [next(s) for _ in range(10)]
  assert s.bad.count >= 3
  assert all(e["key"] == "005.jpg" and e["shard"] == str(folder) for e in s.bad.examples)
  s.close()
  for a, b in zip(batches, _take(config, tmp_path, 10)):
    chex.assert_trees_all_equal(a, b)
  with pytest.raises(pipeline.DataError, match="more than data.max_bad_fraction"):  # noqa: RUF043
    _take(config, tmp_path, 200)


def test_a_source_of_broken_records_only_stops_at_once(tmp_path):
  folder = tmp_path / "broken"
  folder.mkdir()
  (folder / "a.jpg").write_bytes(b"no image")
  config = micro.config("stage2", folder)
  with pytest.raises(pipeline.DataError, match="replacements in a row are broken"):
    _take(config, tmp_path, 1)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_holds_every_example_once_on_any_number_of_processes(
    images, tmp_path, processes):
  config = micro.config("stage2", images)
  ids = []
  lengths = set()
  for i in range(processes):
    batches = pipeline.eval_batches(
        config, "images", "native", sources.SourceSpec("folder", str(images)), process_index=i,
        process_count=processes, workdir=str(tmp_path))
    lengths.add(len(batches))
    for batch in batches:
      assert batch["image"].shape == (8 // processes, micro.IMAGE_SIZE, micro.IMAGE_SIZE, 3)
      ids += batch["_id"][batch["_mask"]].tolist()
  assert lengths == {3}  # 21 examples in batches of 8
  assert sorted(ids) == list(range(21))


def test_scaled_decoding_is_of_training_alone(tmp_path):
  shades = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
  Image.fromarray(shades).resize((300, 300), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg")
  config = micro.config("stage2", tmp_path, data__crop="center", data__flip=False)
  scaled = micro.config("stage2", tmp_path, data__crop="center", data__flip=False, data__decode="scaled")
  exact = decode.prepare((tmp_path / "a.jpg").read_bytes(), size=config.image_size, crop="center",
                         flip=False, max_pixels=10**6, rng=None)
  np.testing.assert_array_equal(_take(config, tmp_path, 1)[0]["image"][0], exact)
  assert (_take(scaled, tmp_path, 1)[0]["image"][0] != exact).any()
  evaluated = pipeline.eval_batches(
      scaled, "a", "native", sources.SourceSpec("folder", str(tmp_path)), process_index=0, process_count=1,
      workdir=str(tmp_path))
  np.testing.assert_array_equal(evaluated[0]["image"][0], exact)


def test_mixture_has_its_proportions_and_epochs_are_permutations():
  mixture = stream.Mixture([30, 50, 7], [0.2, 0.6, 0.2], seed=3)
  seen = [mixture.locate(p) for p in range(2000)]
  counts = np.bincount([s for s, _ in seen])
  np.testing.assert_array_equal(counts, [400, 1200, 400])
  for source, length in ((0, 30), (1, 50), (2, 7)):
    indices = [i for s, i in seen if s == source]
    for epoch in range(3):
      assert sorted(indices[epoch * length:(epoch + 1) * length]) == list(range(length))
    assert indices[:length] != indices[length:2 * length]


def test_another_seed_gives_another_order():
  orders = [[stream.Mixture([100], [1.0], seed).locate(p) for p in range(50)] for seed in (0, 1)]
  assert orders[0] != orders[1]


def test_a_white_image_stays_white(tmp_path):
  Image.new("RGB", (90, 60), "white").save(tmp_path / "w.png")
  batch = _take(micro.config("stage2", tmp_path), tmp_path / "w", 1)[0]
  assert (batch["image"] == 255).all()


def test_settings_that_do_not_fit_are_refused(images, tmp_path):
  config = micro.config("stage2", images)
  with pytest.raises(ValueError, match="does not divide over 3 processes"):
    _stream(config, tmp_path, process=(0, 3))
  with pytest.raises(ValueError, match="unknown protocol '512'"):
    pipeline.eval_batches(config, "x", "512", sources.SourceSpec("folder", str(images)), process_index=0,
                          process_count=1, workdir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match="is not a folder"):
    _stream(micro.config("stage2", tmp_path / "absent"), tmp_path)
