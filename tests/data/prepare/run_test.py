"""Shards do not depend on interruptions, workers or jobs; training reads them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import micro, opened
from tests.data.prepare import small_datasets
from unilip_jax.data import pipeline, source_kinds, sources
from unilip_jax.data.prepare import __main__ as prepare
from unilip_jax.data.prepare import manifest, run

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_SMALL = ["--records_per_shard=4", "--quiet"]


def _arguments(name, root):
  """Returns command and source of a preparation, on a small copy of the real layout in `root`."""
  return {
      "blip3o": lambda: ["blip3o", f"--source={small_datasets.blip3o(root)}", "--checksums",
                         "--verify=full"],
      "blip3o_array_record": lambda: [
          "blip3o", f"--source={small_datasets.blip3o(root)}", "--layout=array_record"],
      "gpt_image_edit": lambda: ["gpt_image_edit", f"--source={small_datasets.gpt_image_edit(root)}"],
      "sharegpt4o": lambda: [
          "sharegpt4o", f"--source={small_datasets.sharegpt4o(root)}", "--layout=array_record"],
      "imagenet": lambda: ["imagenet", f"--source={small_datasets.imagenet(root)}", "--layout=tar"],
      "json_lines": lambda: [
          "json_lines", f"--source={small_datasets.json_lines(root, 'understand')}", "--kind=understand",
          "--max_shard_bytes=6000"],
  }[name]()


def _run(arguments, out, *more):
  prepare.main([*arguments, f"--out={out}", *_SMALL, "--workers=1", *more])


def _start_and_pause(arguments, out, workers, in_a_shard):
  """Starts a preparation; returns the process after its first chunk, with `in_a_shard` in a shard.

  It waits for the file `release` next to `out`.
  """
  before = set(out.rglob("*"))
  process = subprocess.Popen(
      [sys.executable, "-m", "tests.data.prepare.pausing", *arguments, f"--out={out}", *_SMALL,
       f"--workers={workers}"], cwd=_ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True,
      env=os.environ | {"UNILIP_TEST_RELEASE": f"{out.parent}/release"})
  deadline = time.monotonic() + 60
  while True:
    new = {p.relative_to(out).as_posix() for p in set(out.rglob("*")) - before}
    writing = [n for n in new if "partial/" in n and "receipts/" not in n]
    if any("receipts/0" in n for n in new) and (writing or not in_a_shard):
      return process
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def _gone(group):
  try:
    os.killpg(group, 0)
  except ProcessLookupError:
    return True
  return False


@pytest.mark.parametrize("name", [
    "blip3o", "blip3o_array_record", "gpt_image_edit", "sharegpt4o", "imagenet", "json_lines"])
def test_a_killed_preparation_continues_to_the_same_bytes(name, tmp_path):
  arguments = _arguments(name, tmp_path / "source")
  _run(arguments, tmp_path / "expected")
  killed = tmp_path / "killed"
  process = _start_and_pause(arguments, killed, workers=2 if name == "gpt_image_edit" else 1,
                             in_a_shard=name != "blip3o")
  process.kill()
  process.communicate()
  assert not list(killed.rglob("manifest.json")), "it was not killed half-way"
  deadline = time.monotonic() + 20
  while not _gone(process.pid):
    assert time.monotonic() < deadline, "workers outlive the killed run"
    time.sleep(0.02)
  done = {p: p.stat().st_mtime_ns for p in killed.rglob("receipts/0*.json")}
  _run(arguments, killed)
  # A kill may leave the temporary file of a tar's index, which nothing reads.
  tree = {name: data for name, data in small_datasets.tree(killed).items() if ".npz.tmp-" not in name}
  assert tree == small_datasets.tree(tmp_path / "expected")
  assert all(p.stat().st_mtime_ns == t for p, t in done.items()), "finished chunks are not made again"


def test_a_dead_worker_and_ctrl_c_are_reported_and_the_run_continues(tmp_path):
  arguments = _arguments("gpt_image_edit", tmp_path / "source")
  _run(arguments, tmp_path / "expected")
  out = tmp_path / "out"
  process = _start_and_pause(arguments, out, workers=2, in_a_shard=True)
  children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  worker = next(c for c in children
                if b"spawn_main" in pathlib.Path(f"/proc/{c}/cmdline").read_bytes())
  os.kill(int(worker), signal.SIGKILL)
  _, message = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "error: a worker process died" in message
  process = _start_and_pause(arguments, out, workers=2, in_a_shard=True)
  os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
  (tmp_path / "release").touch()  # chunks that were begun are finished
  _, message = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "stopped; the same command continues from here" in message
  assert "Traceback" not in message
  _run(arguments, out)
  assert small_datasets.tree(out) == small_datasets.tree(tmp_path / "expected")


def test_workers_and_jobs_give_the_same_bytes(tmp_path):
  arguments = _arguments("gpt_image_edit", tmp_path / "source")
  _run(arguments, tmp_path / "one")
  prepare.main([*arguments, f"--out={tmp_path}/two", *_SMALL, "--workers=2"])
  for i in (2, 0, 1):
    _run(arguments, tmp_path / "jobs", f"--shard={i}/3")
    assert not (tmp_path / "jobs/manifest.json").exists()
  prepare.main(["merge", f"--out={tmp_path}/jobs"])
  assert small_datasets.tree(tmp_path / "two") == small_datasets.tree(tmp_path / "one")
  assert small_datasets.tree(tmp_path / "jobs") == small_datasets.tree(tmp_path / "one")


def test_a_run_continues_the_work_of_jobs(tmp_path):
  arguments = _arguments("gpt_image_edit", tmp_path / "source")
  _run(arguments, tmp_path / "one")
  _run(arguments, tmp_path / "rest", "--shard=1/3")
  with pytest.raises(manifest.ManifestError, match="4 of 6 chunks are missing: 0, 2, 3, 5"):
    prepare.main(["merge", f"--out={tmp_path}/rest"])
  _run(arguments, tmp_path / "rest")
  assert small_datasets.tree(tmp_path / "rest") == small_datasets.tree(tmp_path / "one")


def test_a_full_disk_leaves_no_half_shard_under_a_shards_name(tmp_path, monkeypatch):
  arguments = _arguments("gpt_image_edit", tmp_path / "source")
  monkeypatch.setattr("unilip_jax.data.prepare.writers._Tar.finish", _no_space)
  out = tmp_path / "out"
  with pytest.raises(run.RunError, match=r"chunk 0: \[Errno 28\] No space left on device. Fix that"):
    _run(arguments, out)
  assert not list(out.glob("*.tar"))
  assert not [p for p in out.rglob("partial/*") if p.is_file()]


def _no_space(self):
  raise OSError(28, "No space left on device")


def test_a_changed_list_makes_changed_chunks_again_and_leaves_nothing_else(tmp_path):
  source = small_datasets.json_lines(tmp_path / "source", "t2i", count=11)
  arguments = ["json_lines", f"--source={source}", "--kind=t2i"]
  _run(arguments, tmp_path / "changed")
  lines = source.read_text().splitlines(keepends=True)
  source.write_text("".join(lines[:3] + lines[4:8]))
  _run(arguments, tmp_path / "changed")
  _run(arguments, tmp_path / "fresh")
  assert small_datasets.tree(tmp_path / "changed") == small_datasets.tree(tmp_path / "fresh")


def test_shards_end_before_they_grow_too_large(tmp_path):
  source = small_datasets.json_lines(tmp_path / "source", "edit", count=8)
  for layout in ("tar", "array_record"):
    out = tmp_path / layout
    _run(["json_lines", f"--source={source}", "--kind=edit", f"--layout={layout}",
          "--max_shard_bytes=11000"], out)
    shards = manifest.load(out)["shards"]
    assert len(shards) == 4
    assert [s["records"] for s in shards] == [2, 2, 2, 2]


def test_limit_and_dry_run(tmp_path, capsys):
  root = small_datasets.gpt_image_edit(tmp_path / "source")
  (root / "gpt-edit/hqedit/input/00003.png").unlink()
  arguments = ["gpt_image_edit", f"--source={root}", "--limit=5"]
  prepare.main([*arguments, f"--out={tmp_path}/out", "--dry_run"])
  out = capsys.readouterr().out
  assert "4 of 5 records" in out
  assert "1 × missing file" in out
  assert not (tmp_path / "out").exists()
  _run(arguments, tmp_path / "out")
  assert manifest.load(tmp_path / "out")["counts"]["items"] == 5


# ---- what training reads


def _batches(config, workdir, count=2):
  stream = pipeline.train_stream(
      config, start_position=0, process_index=0, process_count=1, workdir=str(workdir))
  batches = [next(stream) for _ in range(count)]
  stream.close()
  assert stream.bad.count == 0
  return batches


@pytest.mark.parametrize("layout", ["tar", "array_record"])
def test_prepared_pairs_and_edits_come_out_of_the_training_stream(layout, tmp_path):
  _run(["sharegpt4o", f"--source={small_datasets.sharegpt4o(tmp_path / 'source')}", f"--layout={layout}"],
       tmp_path / "out")
  config = micro.text_config(
      "gen3", data__train=((layout, f"{tmp_path}/out/t2i/*.{layout}", 1.0),),
      data__edit=((layout, f"{tmp_path}/out/edit/*.{layout}", 1.0),))
  for batch in _batches(config, tmp_path):
    assert {name: part["image"].shape for name, part in batch.items()} == {
        "t2i": (8, 56, 56, 3), "edit": (8, 56, 56, 3)}
    assert batch["edit"]["cond_image"].shape == (8, 1, 56, 56, 3)
    assert batch["t2i"]["token_mask"].any()


@pytest.mark.parametrize("layout", ["tar", "array_record"])
def test_prepared_conversations_come_out_of_the_training_stream(layout, tmp_path):
  source = small_datasets.json_lines(tmp_path / "source", "understand")
  _run(["json_lines", f"--source={source}", "--kind=understand", f"--layout={layout}"], tmp_path / "out")
  config = micro.text_config("tiny_mllm", data__train=((layout, f"{tmp_path}/out/*.{layout}", 1.0),))
  for batch in _batches(config, tmp_path):
    assert batch["cond_image"].shape == (4, 1, 56, 56, 3)
    assert batch["answer_mask"].any(axis=1).all()


def test_indexed_tars_come_out_of_the_training_stream_by_the_index_that_was_made(tmp_path, monkeypatch):
  pattern = small_datasets.blip3o(tmp_path / "source")
  _run(["blip3o", f"--source={pattern}"], tmp_path / "out")
  monkeypatch.setattr("unilip_jax.data.tar_index.build", lambda path: pytest.fail("indexed again"))
  config = micro.config("stage2", data__train=(("tar", pattern, 1.0),),
                        data__index_dir=f"{tmp_path}/out/index")
  assert _batches(config, tmp_path)[0]["image"].shape == (8, 56, 56, 3)


@pytest.mark.parametrize("layout", ["index", "tar", "array_record"])
def test_prepared_imagenet_is_read_by_evaluation(layout, tmp_path):
  pattern = small_datasets.imagenet(tmp_path / "source")
  _run(["imagenet", f"--source={pattern}", f"--layout={layout}"], tmp_path / "out")
  kind, path = ("tar", pattern) if layout == "index" else (layout, f"{tmp_path}/out/*.{layout}")
  batches = pipeline.eval_batches(
      micro.config("stage2"), "imagenet", "native", sources.SourceSpec(kind, path), process_index=0,
      process_count=1, workdir=str(tmp_path))
  assert sum(int(b["_mask"].sum()) for b in batches) == 18


def test_every_byte_of_image_text_and_label_is_kept(tmp_path):
  root = small_datasets.gpt_image_edit(tmp_path / "source", count=3)
  for layout in ("tar", "array_record"):
    _run(["gpt_image_edit", f"--source={root}", f"--layout={layout}"], tmp_path / layout)
    source = opened.source(layout, f"{tmp_path}/{layout}/*.{layout}", index=str(tmp_path / "index"),
                           example="edit")
    records = {source[i].key: source[i] for i in range(len(source))}
    assert sorted(records) == [f"{i:08d}" for i in range(6)]
    assert records["00000004"].parts == {
        "cond_image": small_datasets.image(2), "image": small_datasets.image(3, "JPEG"),
        "text": b"make it omniedit 1"}
  pattern = small_datasets.imagenet(tmp_path / "imagenet", tars=1)
  _run(["imagenet", f"--source={pattern}", "--layout=tar"], tmp_path / "val")
  record = source_kinds.TarSource([f"{tmp_path}/val/reconstruct-00001.tar"], str(tmp_path / "index"),
                             {"image": ("jpg",), "label": ("cls",)})[0]
  assert record.parts == {"image": small_datasets.image(4, "JPEG"), "label": b"4"}


def test_samples_of_one_name_in_several_tars_stay_apart(tmp_path):
  for folder in ("a", "b"):
    small_datasets.tar(tmp_path / folder / "0.tar", {
        **{f"{name}.jpg": small_datasets.image(i, "JPEG") for i, name in enumerate(_NAMES)},
        **{f"{name}.txt": b"words" for name in _NAMES}})
  _run(["blip3o", f"--source={tmp_path}/a/*.tar,{tmp_path}/b/*.tar", "--layout=tar"], tmp_path / "out")
  content = manifest.load(tmp_path / "out")
  assert content["counts"]["written"] == 2 * len(_NAMES)
  source = opened.source("tar", f"{tmp_path}/out/*.tar", index=str(tmp_path / "index"),
                        example="t2i")
  assert len(source) == 2 * len(_NAMES)
  assert not source.left_out()
  assert not source.problems


_NAMES = ("x/y", "x-y", "long" * 30 + "/z", "other" * 30 + "/z", "ü", "ö")


def test_the_longest_key_fits_a_tar(tmp_path):
  small_datasets.json_lines(tmp_path, "edit", count=1)
  lines = [json.dumps({"key": "k" * n, "input": "images/0.png", "output": "images/0-after.jpg",
                       "text": f"number {n}"}) for n in (80, 81)]
  source = small_datasets.write(tmp_path / "mine.jsonl", "\n".join(lines))
  _run(["json_lines", f"--source={source}", "--kind=edit"], tmp_path / "out")
  content = manifest.load(tmp_path / "out")
  assert content["counts"]["written"] == 1
  assert "longer than 80" in content["skipped"][0]["why"]


def test_a_manifest_is_there_only_while_it_is_true(tmp_path, monkeypatch):
  source = small_datasets.json_lines(tmp_path / "source", "t2i", count=11)
  arguments = ["json_lines", f"--source={source}", "--kind=t2i"]
  _run(arguments, tmp_path / "out")
  lines = source.read_text().splitlines(keepends=True)
  source.write_text("".join(lines[1:]))
  monkeypatch.setattr("unilip_jax.data.prepare.writers._Tar.finish", _no_space)
  with pytest.raises(run.RunError, match="No space left"):
    _run(arguments, tmp_path / "out")
  assert not (tmp_path / "out/manifest.json").exists()
  with pytest.raises(manifest.ManifestError, match="a run or a job has not finished"):
    prepare.main(["merge", f"--out={tmp_path}/out"])


def test_tfds_becomes_tars_of_images_and_labels(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  elements = [{"image": small_datasets.image(i, "JPEG"), "label": np.int64(700 + i)} for i in range(6)]
  monkeypatch.setattr(tfds, "data_source", lambda name, **kwargs: elements)
  _run(["imagenet", "--source=tfds:imagenet2012:validation"], tmp_path / "val")
  source = source_kinds.TarSource([f"{tmp_path}/val/reconstruct-0000{i}.tar" for i in range(2)],
                             str(tmp_path / "index"), {"image": ("jpg",), "label": ("cls",)})
  assert [source[i].parts["label"] for i in range(6)] == [b"%d" % (700 + i) for i in range(6)]
  assert source[5].parts["image"] == elements[5]["image"]


# ---- gs://


def test_from_and_to_a_remote_file_system(tmp_path, bucket):
  root = small_datasets.gpt_image_edit(tmp_path / "source")
  for name, data in small_datasets.tree(root).items():
    bucket.pipe(f"gs://bucket/down/{name}", data)
  for layout in ("tar", "array_record"):
    _run(["gpt_image_edit", "--source=gs://bucket/down", f"--layout={layout}"], f"gs://bucket/{layout}")
    _run(["gpt_image_edit", f"--source={root}", f"--layout={layout}"], tmp_path / layout)
    local, there = small_datasets.tree(tmp_path / layout), f"/bucket/{layout}/"
    remote = {p.removeprefix(there): bucket.cat(f"gs:/{p}") for p in
              ("/" + f.strip("/") for f in bucket.find(f"gs://bucket/{layout}"))}
    assert remote.keys() == local.keys()
    shards = [name for name in local if name.endswith(layout)]
    assert len(shards) == 6
    assert all(remote[name] == local[name] for name in shards)
    _run(["gpt_image_edit", "--source=gs://bucket/down", f"--layout={layout}"], f"gs://bucket/{layout}")
  prepare.main(["check", "--out=gs://bucket/tar"])
  source = opened.source("tar", "gs://bucket/tar/*.tar", index="gs://bucket/index",
                        example="edit")
  assert len(source) == 24
