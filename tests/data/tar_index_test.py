"""Indices of tars: linear in the members, bound to the tar's content, with links resolved."""

import os
import shutil
import tarfile

import numpy as np
import pytest

from tests import opened
from tests.data.prepare import small_datasets
from unilip_jax.data import files, source_kinds, tar_index


def _nbytes(index):
  return sum(a.nbytes for a in (index.rows, index.columns, index.offsets, index.sizes))


@pytest.mark.parametrize("names", [("{0}.{0}.jpg",), ("._{0}.jpg", "{0}.jpg"), ("x.{0}",)])
def test_an_index_grows_as_the_members_do_whatever_their_names(tmp_path, names):
  sizes = {}
  for count in (100, 400):
    path = small_datasets.tar(tmp_path / f"{count}.tar",
                              [(n.format(i), b"x") for i in range(count) for n in names])
    index = tar_index.load(path, tmp_path / f"index{count}")
    (cached,) = (tmp_path / f"index{count}").iterdir()
    sizes[count] = np.array([_nbytes(index), cached.stat().st_size])
  assert (sizes[400] <= 4 * sizes[100]).all()


def test_a_sample_has_the_first_of_the_suffixes(tmp_path):
  path = small_datasets.tar(tmp_path / "a.tar", [
      ("0.png", b"png"), ("0.jpg", b"jpg!"), ("1.txt", b"t"), ("2.PNG", b"PNG2!")])
  index = tar_index.build(path)
  members = index.select(("jpg", "png"))
  assert members[1] == -1
  assert index.sizes[members[[0, 2]]].tolist() == [4, 5]
  assert list(index.members(0)) == ["png", "jpg"]
  assert list(index.repeats(("jpg", "png"))) == [(0, 1)]


def test_another_tar_of_equal_path_size_and_time_has_another_index(tmp_path, monkeypatch):
  """As two working directories with one relative path and a shared index folder have."""
  for name, order in (("a", "xy"), ("b", "yx")):
    path = small_datasets.tar(tmp_path / name / "data/0.tar", [(f"{k}.jpg", k.encode()) for k in order])
    os.utime(path, ns=(10**18, 10**18))
  for name, keys in (("a", ["x", "y"]), ("b", ["y", "x"])):
    monkeypatch.chdir(tmp_path / name)
    source = opened.source("tar", "data/0.tar", index=str(tmp_path / "index"))
    assert [source[i].key for i in range(2)] == keys
    assert [source[i].parts["image"] for i in range(2)] == [k.encode() for k in keys]


def test_an_index_serves_the_same_tar_under_another_path(tmp_path, monkeypatch):
  path = small_datasets.tar(tmp_path / "a/0.tar", [("x.jpg", b"x")])
  tar_index.load(path, tmp_path / "index")
  (tmp_path / "b").mkdir()
  shutil.copy2(path, tmp_path / "b/0.tar")
  shutil.copytree(tmp_path / "index", tmp_path / "copy")
  monkeypatch.setattr(tar_index, "build", lambda path: pytest.fail("indexed again"))
  monkeypatch.chdir(tmp_path / "a")
  assert tar_index.load("0.tar", tmp_path / "index").keys == ["x"]
  assert tar_index.load(tmp_path / "b/0.tar", tmp_path / "copy").keys == ["x"]


def test_links_in_a_tar_are_the_bytes_of_their_targets(tmp_path):
  path = tmp_path / "a.tar"
  small_datasets.tar(path, [("d/0.jpg", b"zero")])
  with tarfile.open(path, "a") as tar:
    for name, kind, target in (
        ("1.jpg", tarfile.LNKTYPE, "d/0.jpg"), ("d/2.jpg", tarfile.SYMTYPE, "0.jpg"),
        ("3.jpg", tarfile.SYMTYPE, "d/2.jpg"), ("4.jpg", tarfile.SYMTYPE, "absent.jpg"),
        ("5.jpg", tarfile.SYMTYPE, "6.jpg"), ("6.jpg", tarfile.SYMTYPE, "5.jpg")):
      member = tarfile.TarInfo(name)
      member.type, member.linkname = kind, target
      tar.addfile(member)
  source = opened.source("tar", str(path), index=str(tmp_path / "index"))
  assert [source[i].key for i in range(len(source))] == ["d/0", "1", "d/2", "3"]
  assert {source[i].parts["image"] for i in range(len(source))} == {b"zero"}
  assert "3 × broken link: the tar does not hold its target, first: 4.jpg" in str(source.left_out())


def test_thousands_of_members_of_one_name_are_one_line_of_the_log(tmp_path):
  """Written without tarfile, which takes seconds: each header is the same."""
  once = small_datasets.tar(tmp_path / "once.tar", [("0.jpg", b"x")]).read_bytes()[:1024]
  path = tmp_path / "a.tar"
  path.write_bytes(once * 20_000 + bytes(1024))
  source = opened.source("tar", str(path), index=str(tmp_path / "index"))
  assert len(source) == 1
  assert str(source.left_out()) == (
      f"19999 × repeated: an earlier member has this name, first: 0.jpg in {path}")


def test_a_tar_that_is_written_while_it_is_indexed_is_named(tmp_path, monkeypatch):
  path = small_datasets.tar(tmp_path / "a.tar", [("0.jpg", b"x")])
  build = tar_index.build

  def grow(path):
    index = build(path)
    with open(path, "ab") as f:
      f.write(bytes(512))
    return index

  monkeypatch.setattr(tar_index, "build", grow)
  with pytest.raises(files.ChangedError, match="a.tar changed while it was indexed"):  # noqa: RUF043
    tar_index.load(path, tmp_path / "index")


def test_indices_of_an_earlier_format_are_not_read(tmp_path):
  path = small_datasets.tar(tmp_path / "a.tar", [("0.jpg", b"x")])
  expected = tar_index.load(path, tmp_path / "index")
  (cached,) = (tmp_path / "index").iterdir()
  np.savez(cached.open("wb"), stamp="2:1:1", offsets=np.zeros((1, 1)), sizes=np.zeros((1, 1)), names="[]")
  assert tar_index.load(path, tmp_path / "index").keys == expected.keys


@pytest.mark.parametrize("change", [
    {"rows": np.array([5], np.int32)}, {"offsets": np.array([-1])}, {"sizes": np.array([1.5])},
    {"columns": np.array([0, 0], np.int32)}])
def test_an_index_with_impossible_values_is_made_again(tmp_path, change):
  path = small_datasets.tar(tmp_path / "a.tar", [("0.jpg", b"x")])
  tar_index.load(path, tmp_path / "index")
  (cached,) = (tmp_path / "index").iterdir()
  with np.load(cached) as z:
    arrays = dict(z)
  with cached.open("wb") as f:
    np.savez(f, **arrays | change)
  assert tar_index.load(path, tmp_path / "index").offsets.tolist() == [512]


def test_pipes_sockets_and_folders_are_no_tars(tmp_path):
  os.mkfifo(tmp_path / "pipe.tar")
  (tmp_path / "folder.tar").mkdir()
  for name, what in (("pipe", "a named pipe"), ("folder", "a folder")):
    for kind in ("tar", "array_record"):
      with pytest.raises(ValueError, match=rf"{name}\.tar is {what}, not a file"):
        opened.source(kind, f"{tmp_path}/{name}.tar", index=str(tmp_path / "index"))


def test_a_part_of_gigabytes_is_refused_unread(tmp_path, monkeypatch):
  path = small_datasets.tar(tmp_path / "a.tar", [("0.jpg", bytes(200))])
  source = source_kinds.TarSource([str(path)], str(tmp_path / "index"), {"image": ("jpg",)})
  monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
  with pytest.raises(ValueError, match=r"image of 0 in .* has 200 bytes"):
    source[0]
