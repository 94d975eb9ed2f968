"""Tars are read at random without conversion; broken ones up to where they break; remote ones too."""

from concurrent import futures
import functools
import io
import re
import tarfile

import numpy as np
from PIL import Image
import pytest

from tests import opened
from unilip_jax.common import registry
from unilip_jax.data import decode, files, sources, tar_index


def _jpeg(value):
  buffer = io.BytesIO()
  Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "JPEG")
  return buffer.getvalue()


def _tar_bytes(count=5, first=0):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for i in range(first, first + count):
      for suffix, data in (("jpg", _jpeg(i)), ("txt", f"caption {i}".encode())):
        member = tarfile.TarInfo(f"dir/{i:04d}.{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


@pytest.fixture
def tar(tmp_path):
  path = tmp_path / "a.tar"
  path.write_bytes(_tar_bytes())
  return path


def test_records_are_the_members_bytes(tar, tmp_path):
  source = opened.source("tar", str(tar), index=str(tmp_path / "index"))
  assert len(source) == 5
  record = source[3]
  assert record.parts["image"] == _jpeg(3)
  assert (record.key, record.shard) == ("dir/0003", str(tar))


def test_index_is_cached_until_the_tar_changes(tar, tmp_path, monkeypatch):
  index_dir = tmp_path / "index"
  tar_index.load(tar, index_dir)
  monkeypatch.setattr(tar_index, "build", lambda path: pytest.fail("the cache was not used"))
  index = tar_index.load(tar, index_dir)
  assert index.keys == [f"dir/{i:04d}" for i in range(5)]
  assert index.suffixes == ["jpg", "txt"]
  monkeypatch.undo()
  tar.write_bytes(_tar_bytes(7))
  assert len(tar_index.load(tar, index_dir)) == 7


def test_an_unreadable_index_is_made_again(tar, tmp_path):
  index_dir = tmp_path / "index"
  tar_index.load(tar, index_dir)
  for file in index_dir.iterdir():
    file.write_bytes(b"torn")
  assert len(tar_index.load(tar, index_dir)) == 5


@pytest.mark.parametrize("cut", [0, 100, 2000, 5000])
def test_a_truncated_tar_is_read_up_to_the_break(tmp_path, cut):
  path = tmp_path / "cut.tar"
  path.write_bytes(_tar_bytes()[:cut])
  index = tar_index.load(path, tmp_path / "index")
  assert index.problem
  assert len(index) < 5


def test_an_empty_tar_is_skipped_among_others_and_refused_alone(tar, tmp_path):
  (tmp_path / "z.tar").write_bytes(b"")
  make = lambda p: opened.source("tar", p, index=str(tmp_path / "i"))
  both = make(str(tmp_path / "*.tar"))
  assert len(both) == 5
  assert "empty" in both.problems[str(tmp_path / "z.tar")]
  assert f"{tmp_path}/z.tar: the tar is empty (0 bytes)" in str(both.left_out())
  with pytest.raises(ValueError, match=r"for the example .reconstruct.: each record needs image"):
    make(str(tmp_path / "z.tar"))
  with pytest.raises(FileNotFoundError, match=r"no file matches .*docs/data.md"):
    make(str(tmp_path / "absent-*.tar"))


def test_a_member_of_zero_bytes_is_left_out_and_hides_no_other(tmp_path):
  path = tmp_path / "a.tar"
  with tarfile.open(path, "w") as tar:
    for i, data in enumerate((_jpeg(1), b"", _jpeg(2))):
      member = tarfile.TarInfo(f"{i}.jpg")
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  source = opened.source("tar", str(path), index=str(tmp_path / "index"))
  assert [source[i].parts["image"] for i in range(2)] == [_jpeg(1), _jpeg(2)]
  assert (len(source), str(source.left_out())) == (2, f"1 × empty file, first: 1.jpg in {path}")
  with pytest.raises(decode.BadImageError, match="0 bytes"):
    decode.decode(b"", 10**6)


def test_more_tars_than_open_descriptors_read_from_threads(tmp_path, monkeypatch):
  """A file that falls out of the cache while another thread reads from it stays open."""
  for i in range(6):
    (tmp_path / f"{i}.tar").write_bytes(_tar_bytes(3, first=3 * i))
  monkeypatch.setattr(
      files, "_open_cached", functools.lru_cache(maxsize=1)(files._open_cached.__wrapped__))
  source = opened.source("tar", str(tmp_path / "*.tar"), index=str(tmp_path / "index"))
  order = np.random.default_rng(0).integers(0, len(source), 3000).tolist()
  with futures.ThreadPoolExecutor(8) as pool:
    images = list(pool.map(lambda i: source[i].parts["image"], order))
  expected = [_jpeg(i) for i in range(len(source))]
  assert all(image == expected[i] for image, i in zip(images, order))


def test_edit_samples_keep_their_two_part_suffixes():
  assert tar_index.split_name("x/000.input.jpg") == ("x/000", "input.jpg")
  assert tar_index.split_name("000.JPG") == ("000", "jpg")


def test_tars_on_a_remote_file_system(tmp_path, bucket):
  for i in range(2):
    bucket.pipe(f"gs://bucket/part-{i}.tar", _tar_bytes(3, first=3 * i))
  source = opened.source("tar", "gs://bucket/part-*.tar", index="gs://bucket/index")
  assert len(source) == 6
  assert source[4].parts["image"] == _jpeg(4)


def test_folders_on_a_remote_file_system(bucket):
  for i, name in enumerate(("a.jpg", "sub/b.jpg")):
    bucket.pipe(f"gs://bucket/folder/{name}", _jpeg(i))
  source = opened.source("folder", "gs://bucket/folder")
  assert [(source[i].key, source[i].parts["image"]) for i in range(len(source))] == [
      ("a.jpg", _jpeg(0)), ("sub/b.jpg", _jpeg(1))]


def test_folders_are_read_recursively_in_order(tmp_path):
  (tmp_path / "b").mkdir()
  for name in ("c.png", "b/a.JPG", "a.jpeg", "notes.txt"):
    Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG") if not name.endswith("txt") else (
        tmp_path / name).write_text("x")
  source = opened.source("folder", str(tmp_path))
  assert [source[i].key for i in range(len(source))] == ["a.jpeg", "b/a.JPG", "c.png"]


def test_array_record_files_of_images_or_msgpack_maps(tmp_path):
  import pickle

  from array_record.python import array_record_module
  import msgpack

  path = str(tmp_path / "x.array_record")
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  writer.write(_jpeg(1))
  writer.write(msgpack.packb({"image": _jpeg(2), "caption": "c"}))
  writer.close()
  source = opened.source("array_record", path)
  source = pickle.loads(pickle.dumps(source))  # as for a worker process
  assert [source[0].parts["image"], source[1].parts["image"]] == [_jpeg(1), _jpeg(2)]


def test_tfds_images_stay_encoded(monkeypatch):
  import tensorflow_datasets as tfds

  calls = {}

  def fake(name, **kwargs):
    calls.update(kwargs, name=name)
    return [{"image": np.frombuffer(_jpeg(9), np.uint8).tobytes(), "label": 0}]

  monkeypatch.setattr(tfds, "data_source", fake)
  source = opened.source("tfds", "imagenet2012:validation:/data")
  assert source[0].parts["image"] == _jpeg(9)
  assert (calls["name"], calls["split"], calls["data_dir"]) == (
      "imagenet2012", "validation", "/data")


def test_tfds_features_that_are_absent_are_named_at_the_opening(monkeypatch):
  import tensorflow_datasets as tfds

  monkeypatch.setattr(tfds, "data_source", lambda name, **kwargs: [{"image": b"x", "caption": b"y"}])
  with pytest.raises(ValueError, match="tfds coco:train has no text; its features are caption, image"):
    opened.source("tfds", "coco:train", example="t2i")


def test_unknown_kinds_are_refused_with_the_registered_ones():
  with pytest.raises(ValueError, match=r"unknown source 'zip'; known: array_record, .*folder, .*tar, tfds"):
    opened.source("zip", "x")


class _Numbers(sources.Source):
  """A source with options, to be registered."""

  def __init__(self, count):
    self._count = count

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    return sources.Record({"image": b"%d" % index}, str(index), "numbers")


def open_numbers(path, example, folders, *, count=3, start=0):
  assert (path, example) == ("path", "reconstruct")
  return _Numbers(count - start)


@pytest.fixture
def numbers(monkeypatch):
  registry.names("source")  # loads plug-ins
  monkeypatch.setitem(registry._rows["source"], "numbers", f"{__name__}:open_numbers")


def test_options_reach_the_kind_and_unknown_ones_are_refused_with_the_known(numbers, tar):
  assert len(opened.source("numbers", "path")) == 3
  assert len(opened.source("numbers", "path", count=5, start=1)) == 4
  with pytest.raises(ValueError, match="numbers path counts=5: unknown option counts; known: count, start"):
    opened.source("numbers", "path", counts=5)
  with pytest.raises(ValueError, match="unknown option count; known: same"):
    opened.source("tar", str(tar), count=5)


def test_rows_have_two_forms():
  spec = sources.SourceSpec("tar", "a/*.tar")
  assert sources.training_row(("tar", "a/*.tar", 1)) == (spec, 1.0)
  assert sources.named_row("eval.sets", ("x", "224", "tar", "a/*.tar"), ("name", "protocol")) == (
      ("x", "224"), spec)
  options = {"count": 24}
  spec = sources.SourceSpec("shapes", "train", options)
  assert sources.training_row(["shapes", "train", 0.5, options]) == (spec, 0.5)
  assert sources.named_row("sample_set", ("t2i", "shapes", "train", options), ("example",)) == (
      ("t2i",), spec)
  assert str(spec) == "shapes train count=24"


@pytest.mark.parametrize("row", [
    ("tar",), ("tar", "a.tar"), ("tar", "a.tar", 1.0, 2.0), ("tar", "a.tar", 1.0, {}, {})])
def test_rows_of_another_form_are_refused_with_both_forms(row):
  with pytest.raises(ValueError, match=re.escape(
      f"{row!r} is not (kind, path, weight) or (kind, path, weight, {{option: value}})")):
    sources.training_row(row)
  with pytest.raises(ValueError, match=re.escape("sample_set: ('tar',) is not (example, kind, path) or")):
    sources.named_row("sample_set", ("tar",), ("example",))


def test_a_source_without_a_part_keeps_its_records(tar, tmp_path):
  source = opened.source("tar", str(tar), index=str(tmp_path / "index"), example="t2i")
  bare = source.without("image")
  assert [bare[i].parts for i in range(5)] == [{"text": f"caption {i}".encode()} for i in range(5)]
  assert set(source[0].parts) == {"image", "text"}
  numbers = _Numbers(3)  # by default nothing is left out
  assert numbers.without("image") is numbers
