"""Files that change during a run are named as changed; nothing waits for a pipe."""

import os
import signal

from array_record.python import array_record_module
import pytest

from tests import micro, opened
from tests.data.prepare import small_datasets
from unilip_jax.data import decode, files, pipeline, source_kinds
from unilip_jax.data.prepare import __main__ as prepare
from unilip_jax.data.prepare import json_lists, manifest

_JPEG = small_datasets.image(0, "JPEG")


def _tar(path, count=3):
  return small_datasets.tar(path, [(f"{i}.jpg", small_datasets.image(i, "JPEG")) for i in range(count)])


def _replace(path):
  _tar(path.with_name("new"), 5).rename(path)


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("change", [
    lambda p: p.write_bytes(p.read_bytes()[:3000]), lambda p: p.write_bytes(p.read_bytes() + bytes(512)),
    _replace, lambda p: os.utime(p, ns=(1, 1)), lambda p: p.unlink()])
def test_a_tar_that_changes_is_an_error_and_no_broken_record(tmp_path, change, read_before):
  path = _tar(tmp_path / "a.tar")
  source = opened.source("tar", str(path), index=str(tmp_path / "index"))
  if read_before:
    assert source[2].parts["image"] == small_datasets.image(2, "JPEG")
  change(path)
  with pytest.raises(files.ChangedError, match=r"a.tar (changed|was removed) after it had been opened"):
    source[1]
  assert not issubclass(files.ChangedError, (OSError, decode.BadRecordError))


def test_a_training_stream_stops_at_a_changed_tar(tmp_path):
  path = _tar(tmp_path / "a.tar")
  config = micro.config("stage2", data__train=(("tar", str(path), 1.0),))
  source = pipeline.train_stream(
      config, start_position=0, process_index=0, process_count=1, workdir=str(tmp_path))
  os.utime(path, ns=(1, 1))
  with pytest.raises(ValueError, match=r"a.tar changed after it had been opened: its modification time"):
    [next(source) for _ in range(50)]
  source.close()


def test_an_array_record_file_that_changes_is_named(tmp_path, monkeypatch):
  path = tmp_path / "a.array_record"

  def write(count):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(count):
      writer.write(_JPEG)
    writer.close()

  write(3)
  source = opened.source("array_record", str(path))
  assert source[0].parts["image"] == _JPEG
  write(9)
  monkeypatch.setattr(source_kinds, "_CHECK_SECONDS", 0.0)
  with pytest.raises(files.ChangedError, match=r"a.array_record changed after"):
    source[1]


def test_maps_of_many_entries_are_read_and_png_is_no_map(tmp_path):
  import msgpack

  path = tmp_path / "a.array_record"
  image = small_datasets.image(0)
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for count in (0, 8, 40):
    writer.write(msgpack.packb({"image": image} | {str(i): i for i in range(count)}))
  writer.write(image)
  writer.close()
  source = opened.source("array_record", str(path))
  assert [source[i].parts for i in range(4)] == [{"image": image}] * 4


def test_an_image_of_a_folder_that_changes_is_a_broken_record(tmp_path):
  path = small_datasets.write(tmp_path / "a.jpg", _JPEG)
  source = opened.source("folder", str(tmp_path))
  path.write_bytes(small_datasets.image(1, "JPEG") + b"longer")
  with pytest.raises(decode.BadRecordError, match=r"a.jpg changed after it had been opened"):
    source[0]


def test_a_remote_tar_that_changes_is_named(tmp_path, bucket, monkeypatch):
  bucket.pipe("gs://bucket/a.tar", _tar(tmp_path / "a.tar", 9).read_bytes())
  source = opened.source("tar", "gs://bucket/a.tar", index=str(tmp_path / "index"))
  assert source[0].parts
  bucket.pipe("gs://bucket/a.tar", _tar(tmp_path / "a.tar", 1).read_bytes())
  with pytest.raises(files.ChangedError, match=r"a.tar ends inside bytes"):
    source[8]
  monkeypatch.setattr(files, "_REMOTE_CHECK_SECONDS", 1e-9)
  with pytest.raises(files.ChangedError, match=r"a.tar changed after it had been opened: it had"):
    source[0]


def test_a_list_that_changes_while_it_is_read_is_named(tmp_path):
  path = small_datasets.write(tmp_path / "a.jsonl", '{"a": 1}\n' * 3)
  lines = json_lists.lines(path, [])
  assert next(lines) == (1, {"a": 1}, "")
  path.write_text('{"a": 1}\n' * 4)
  with pytest.raises(json_lists.ListError, match=r"a.jsonl changed while it was read"):
    list(lines)
  path = small_datasets.write(tmp_path / "a.json", "[1, 2]")
  elements = json_lists.array(path, [])
  assert next(elements) == 1
  os.utime(path, ns=(1, 1))
  with pytest.raises(json_lists.ListError, match=r"a.json changed while it was read"):
    list(elements)


def test_a_long_listing_is_refused_not_cut(tmp_path, monkeypatch):
  root = small_datasets.gpt_image_edit(tmp_path, 1)
  monkeypatch.setattr(json_lists, "MAX_ELEMENT", 40)
  with pytest.raises(ValueError, match=r"gptedit.txt has more than 40 bytes"):
    prepare.main(["gpt_image_edit", f"--source={root}", f"--out={tmp_path}/out", "--quiet", "--workers=1"])


# ---- preparing again


def _prepare(source, out, *more):
  prepare.main([*source, f"--out={out}", "--workers=1", "--quiet", "--records_per_shard=3", *more])
  return small_datasets.tree(out)


def test_preparing_again_makes_the_chunks_whose_images_changed(tmp_path, caplog):
  source = small_datasets.json_lines(tmp_path / "source", "t2i", 6)
  arguments = ["json_lines", f"--source={source}", "--kind=t2i"]
  before = _prepare(arguments, tmp_path / "out")
  image = tmp_path / "source/images/4.png"
  os.utime(image, ns=(10**18, 10**18))
  same = _prepare(arguments, tmp_path / "out")
  assert same["t2i-00001.tar"] == before["t2i-00001.tar"]
  assert "chunk 1 is made again: its source files changed" in caplog.text
  assert "chunk 0" not in caplog.text
  image.write_bytes(small_datasets.image(99))
  after = _prepare(arguments, tmp_path / "out")
  assert after["t2i-00000.tar"] == before["t2i-00000.tar"]
  assert small_datasets.image(99) in after["t2i-00001.tar"]
  assert not list(manifest.check(tmp_path / "out"))
  caplog.clear()
  assert _prepare(arguments, tmp_path / "out") == after
  assert "made again" not in caplog.text


def test_preparing_again_notices_another_tar_of_equal_offsets(tmp_path):
  def write(first):
    return small_datasets.tar(tmp_path / "a.tar", [
        (f"{i}.{s}", d) for i in range(3)
        for s, d in (("bmp", small_datasets.image(first + i, "BMP")), ("txt", b"words"))])

  path = write(0)
  arguments = ["blip3o", f"--source={path}", "--layout=tar"]
  _prepare(arguments, tmp_path / "out")
  os.utime(write(50), ns=(10**18, 10**18))
  assert small_datasets.image(52, "BMP") in _prepare(arguments, tmp_path / "out")["t2i-00000.tar"]


def test_a_missing_image_that_appears_is_noticed(tmp_path):
  source = small_datasets.json_lines(tmp_path / "source", "t2i", 3)
  image = tmp_path / "source/images/1.png"
  data = image.read_bytes()
  image.unlink()
  arguments = ["json_lines", f"--source={source}", "--kind=t2i"]
  _prepare(arguments, tmp_path / "out")
  assert manifest.load(tmp_path / "out")["counts"]["written"] == 2
  image.write_bytes(data)
  _prepare(arguments, tmp_path / "out")
  assert manifest.load(tmp_path / "out")["counts"]["written"] == 3


def test_chunks_of_an_earlier_version_are_made_again(tmp_path, caplog):
  source = small_datasets.json_lines(tmp_path / "source", "t2i", 3)
  arguments = ["json_lines", f"--source={source}", "--kind=t2i"]
  after = _prepare(arguments, tmp_path / "out")
  progress = manifest.read_progress(tmp_path / "out", 0)
  del progress["files"]
  manifest.write_progress(tmp_path / "out", progress)
  assert _prepare(arguments, tmp_path / "out") == after
  assert "an earlier version noted neither size nor time" in caplog.text


def test_source_files_that_change_during_a_chunk_stop_it(tmp_path, monkeypatch):
  from unilip_jax.data.prepare import record

  source = small_datasets.json_lines(tmp_path / "source", "t2i", 3)
  real = record.make

  def make(item, rules):
    os.utime(tmp_path / "source/images/0.png", ns=(1, 1))
    return real(item, rules)

  monkeypatch.setattr(record, "make", make)
  with pytest.raises(ValueError, match="source files changed while they were read"):
    _prepare(["json_lines", f"--source={source}", "--kind=t2i"], tmp_path / "out")


def test_a_wrong_source_is_no_obstacle_to_the_right_one(tmp_path):
  source = small_datasets.json_lines(tmp_path / "source", "t2i", 3)
  with pytest.raises(FileNotFoundError):
    _prepare(["json_lines", f"--source={source}x", "--kind=t2i"], tmp_path / "out")
  _prepare(["json_lines", f"--source={source}", "--kind=t2i"], tmp_path / "out")
  assert manifest.load(tmp_path / "out")["counts"]["written"] == 3


def test_pipes_are_refused_without_waiting(tmp_path):
  small_datasets.write(tmp_path / "list.jsonl", '{"image": "folder/b.jpg", "text": "x"}')
  (tmp_path / "folder").mkdir()
  for name in ("a.tar", "a.jsonl", "folder/b.jpg"):
    os.mkfifo(tmp_path / name)
  run = lambda *arguments: prepare.main([*arguments, f"--out={tmp_path}/out", "--workers=1", "--quiet"])

  def stop(*_):
    raise BaseException("waits for a pipe")

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(20)
  try:
    for read, message in (
        (lambda: opened.source("tar", f"{tmp_path}/a.tar", index=f"{tmp_path}/i"), "a named pipe"),
        (lambda: opened.source("folder", f"{tmp_path}/folder"), "not a file but a named pipe"),
        (lambda: run("blip3o", f"--source={tmp_path}/a.tar"), "a named pipe"),
        (lambda: run("json_lines", f"--source={tmp_path}/a.jsonl", "--kind=t2i"), "not a file"),
        (lambda: run("json_lines", f"--source={tmp_path}/list.jsonl", "--kind=t2i"), "no record could be")):
      with pytest.raises((ValueError, FileNotFoundError), match=message):
        read()
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
