"""What a source leaves out is counted, named by its reason and logged at the opening, or refused."""

import io
import logging
import os
import tarfile

import numpy as np
import pytest

from tests import micro, opened
from tests.data.prepare import small_datasets
from unilip_jax.data import omissions, pipeline, prepared, sources
from unilip_jax.data.prepare import __main__ as prepare

_JPEG = small_datasets.image(0, "JPEG")


def _folder(root, *names, text=b"words"):
  for name in names:
    small_datasets.write(root / name, text if name.lower().endswith(".txt") else _JPEG)
  return str(root)


def _tar(path, *names):
  return str(small_datasets.tar(
      path, [(name, b"words" if name.endswith(".txt") else _JPEG) for name in names]))


def _keys(source):
  return [source[i].key for i in range(len(source))]


def _messages(caplog):
  return [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]


@pytest.mark.parametrize("example", ["reconstruct", "t2i"])
def test_members_whose_names_hold_dots_are_counted_and_named_once(tmp_path, caplog, example):
  names = [f"{i:05d}" if i < 2 else f"photo {i}.{i * 7}" for i in range(10)]
  path = _tar(tmp_path / "a.tar", *(f"{n}.{s}" for n in names for s in ("jpg", "txt")))
  for _ in range(2):  # the second time from the cached index
    caplog.clear()
    assert len(opened.source("tar", path, index=str(tmp_path / "i"), example=example)) == 2
    (message,) = _messages(caplog)
    assert "2 of 10 records are read. Left out: 8 × no image under the suffixes jpg, jpeg, png" in message
    assert f"(in tars a key ends at its first dot), first: photo 2.14.jpg in {path}" in message


def test_names_in_folders_end_at_their_last_dot(tmp_path):
  root = _folder(tmp_path, "photo 3.21.jpg", "photo 3.21.txt", "1.5.2.PNG", "1.5.2.TXT", "a.jpg",
                 "a.jpg.txt", "x/e\u0301.jpg", "x/\u00e9.txt")
  source = opened.source("folder", root, example="t2i")
  assert _keys(source) == ["1.5.2.PNG", "a.jpg", "photo 3.21.jpg", "x/e\u0301.jpg"]
  assert all(source[i].parts["text"] == b"words" for i in range(4))
  assert not source.left_out()


def test_edits_in_folders_have_dots_in_their_names_too(tmp_path):
  root = _folder(tmp_path, "1.5.input.jpg", "1.5.output.jpg", "1.5.txt", "2.input.jpg", "2.txt", "3.jpg")
  source = opened.source("folder", root, example="edit")
  assert _keys(source) == ["1.5.input.jpg"]
  left_out = str(source.left_out())
  assert "first: 2.input.jpg" in left_out
  assert "1 × no image under the suffixes output.jpg, " in left_out
  assert "1 × no cond_image under the suffixes input.jpg, " in left_out


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG_large", "TIFF", "JPEG"])
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_images_of_unusual_suffixes_are_read(tmp_path, kind, suffix):
  make = _tar if kind == "tar" else _folder
  path = make(tmp_path / "a.tar", f"0.{suffix}")
  assert len(opened.source(kind, path, index=str(tmp_path / "i"))) == 1


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_each_reason_is_counted_with_its_first_example(tmp_path, kind):
  make = _tar if kind == "tar" else _folder
  path = make(tmp_path / "a", "0.jpg", "0.txt", "1.jpg", "2.heic", "3", "4.csv", "README.md",
              "LICENSE.txt", "5.txt", "._0.jpg", "__MACOSX/0.jpg", ".DS_Store", "Thumbs.db", ".git/0.jpg",
              "6.jpg", "6.png", "6.txt")
  source = opened.source(kind, path, index=str(tmp_path / "i"), example="t2i")
  assert len(source) == 2
  left_out = source.left_out()
  reasons = {reason: left_out.count(reason) for reason in (
      omissions.HIDDEN, omissions.OTHER, omissions.SECOND, "no known suffix",
      "no text under the suffix txt", omissions.lacks("image", sources.IMAGE_SUFFIXES),
      "HEIC files are not read: convert them to JPEG or PNG")}
  assert list(reasons.values()) == [5, 3, 1, 1, 1, 1, 1]
  assert left_out.bad == 4  # 1.jpg, 2.heic, 3, 5.txt


def test_too_many_are_refused_with_counts_reasons_and_remedy(tmp_path):
  path = _tar(tmp_path / "a.tar", *(f"{i}.jpg" for i in range(30)), *(f"{i}.txt" for i in range(29)))
  config = micro.text_config("gen2", data__train=(("tar", path, 1.0),), data__edit=(),
                             data__edit_share=0.0)
  make = lambda: pipeline.train_stream(
      config, start_position=0, process_index=0, process_count=1, workdir=str(tmp_path / "run"))
  with pytest.raises(ValueError, match=(
      r"1 of 30 records are left out, more than data.max_bad_fraction=0.01. Left out: 1 × no text under "
      r"the suffix txt, first: 29.jpg in .*a.tar. Correct the data, or raise data.max_bad_fraction "
      r"\(--config.data.max_bad_fraction=0.04 accepts them\)")):
    make()
  config.data.max_bad_fraction = 0.05
  make().close()


def test_evaluation_refuses_them_too(tmp_path):
  root = _folder(tmp_path / "f", "0.jpg", "1.heic")
  with pytest.raises(ValueError, match="1 of 2 records are left out"):
    pipeline.eval_batches(micro.config("stage2"), "x", "native", sources.SourceSpec("folder", root),
                          process_index=0, process_count=1, workdir=str(tmp_path))


def test_half_a_tar_that_is_not_read_counts_as_half_of_its_records(tmp_path):
  path = small_datasets.tar(tmp_path / "a.tar", [(f"{i}.jpg", bytes(9000)) for i in range(40)])
  path.write_bytes(path.read_bytes() * 2)
  source = opened.source("tar", str(path), index=str(tmp_path / "i"))
  assert len(source) == 40
  assert 38 <= source.left_out().bad <= 42
  assert "two tars in one file" in str(source.left_out())


def test_links_are_followed_each_folder_once_and_without_end(tmp_path):
  root = tmp_path / "root"
  _folder(tmp_path / "elsewhere", "b.jpg", "deep/c.jpg")
  _folder(root, "a.jpg")
  (root / "linked").symlink_to(tmp_path / "elsewhere")
  (root / "again").symlink_to(root)
  (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "elsewhere")
  (root / "d.jpg").symlink_to(root / "a.jpg")
  (root / "gone.jpg").symlink_to(root / "absent.jpg")
  (root / "loop.jpg").symlink_to(root / "loop.jpg")
  source = opened.source("folder", str(root))
  assert _keys(source) == ["a.jpg", "d.jpg", "linked/b.jpg", "linked/deep/c.jpg"]
  left_out = str(source.left_out())
  assert "1 × broken link (No such file or directory), first: gone.jpg" in left_out
  assert "1 × broken link (Too many levels of symbolic links), first: loop.jpg" in left_out
  assert "2 × folder that is read under another name, first: again" in left_out
  assert source.left_out().bad == 2


def test_pipes_and_empty_files_in_a_folder_are_named_and_never_opened(tmp_path):
  root = _folder(tmp_path, "a.jpg")
  os.mkfifo(tmp_path / "b.jpg")
  (tmp_path / "c.jpg").touch()
  source = opened.source("folder", root)
  assert _keys(source) == ["a.jpg"]
  assert str(source.left_out()) == (
      "1 × not a file but a named pipe, first: b.jpg; 1 × empty file, first: c.jpg")


def test_an_unreadable_subfolder_is_named(tmp_path, monkeypatch):
  root = _folder(tmp_path, "a.jpg", "closed/b.jpg")
  real = os.scandir

  def scandir(path):
    if str(path).endswith("closed"):
      raise PermissionError(13, "Permission denied", path)
    return real(path)

  monkeypatch.setattr(os, "scandir", scandir)
  assert str(opened.source("folder", root).left_out()) == (
      "1 × unreadable folder (Permission denied), first: closed")


def test_a_source_without_any_record_says_what_it_left_out(tmp_path):
  with pytest.raises(ValueError, match=r"holds no records .* Left out: 1 × no text under .*, first: a.jpg"):
    opened.source("folder", _folder(tmp_path, "a.jpg"), example="t2i")


def test_hidden_files_in_a_bucket_are_left_out(bucket):
  for name in ("a.jpg", "._a.jpg", ".git/b.jpg"):
    bucket.pipe(f"gs://bucket/folder/{name}", _JPEG)
  source = opened.source("folder", "gs://bucket/folder")
  assert _keys(source) == ["a.jpg"]
  assert source.left_out().count(omissions.HIDDEN) == 2


def test_files_that_patterns_match_twice_are_named(tmp_path, caplog):
  path = _tar(tmp_path / "a.tar", "0.jpg")
  assert len(opened.source("tar", f"{path},{tmp_path}/*.tar", index=str(tmp_path / "i"))) == 2
  assert f"matched more than once, e.g. {path} 2 times" in caplog.text


def test_records_that_a_rule_skips_are_counted_and_logged(caplog):
  bad = pipeline.BadRecords(0.0)
  line = b'{"key": "k", "shard": "s", "why": "a prompt of 1001 characters", "skipped": true}'
  for _ in range(10):
    bad.note(np.frombuffer(line, np.uint8), 1)
  assert (bad.count, bad.skipped) == (0, 10)
  assert [m for m in _messages(caplog) if "skipped by a rule" in m] == [
      f"{n} of {n} records were skipped by a rule; the last one, k in s: a prompt of 1001 characters"
      for n in (1, 10)]


def test_an_evaluation_of_too_many_broken_images_stops(tmp_path):
  root = _folder(tmp_path, *(f"{i:02d}.jpg" for i in range(30)))
  for i in range(12):  # more than 10, 0.01 of 1000
    (tmp_path / f"{i:02d}.jpg").write_bytes(b"no image")
  batches = pipeline.eval_batches(
      micro.config("stage2"), "x", "native", sources.SourceSpec("folder", root), process_index=0,
      process_count=1, workdir=str(tmp_path))
  with pytest.raises(pipeline.DataError, match=r"records are broken, more than data.max_bad"):
    list(batches)


# ---- what preparing leaves out, and what is left of it


def _prepare(*arguments):
  prepare.main([*arguments, "--workers=1", "--quiet", "--records_per_shard=2"])


def test_preparing_names_dotted_and_hidden_members(tmp_path, capsys):
  path = _tar(tmp_path / "a.tar", "0.jpg", "0.txt", "photo 3.21.jpg", "photo 3.21.txt", "._0.jpg")
  arguments = ["blip3o", f"--source={path}", f"--out={tmp_path}/out", "--layout=tar"]
  _prepare(*arguments)
  captured = capsys.readouterr()
  assert "1 × hidden or system file" in captured.out
  assert "1 × incomplete sample" in captured.out
  assert "warning: 1 of 3 records could not be used" in captured.err
  assert "it has no image, text, but 21.jpg, 21.txt (a key ends at its first dot)" in (
      tmp_path / "out/manifest.json").read_text()
  with pytest.raises(ValueError, match=r"1 of 3 records could not be used, more than --max"):
    _prepare(*arguments, "--max_bad_fraction=0.2")


def test_shards_that_are_missing_changed_or_unfinished_are_counted(tmp_path):
  source = small_datasets.json_lines(tmp_path / "source", "t2i", 6)
  out = tmp_path / "out"
  _prepare("json_lines", f"--source={source}", "--kind=t2i", f"--out={out}")
  make = lambda: opened.source("tar", f"{out}/*.tar", index=str(tmp_path / "i"), example="t2i").left_out()
  assert not make()
  (out / "t2i-00001.tar").unlink()
  assert str(make()) == ("2 × records of prepared shards that are missing or changed, first: "
                         f"{out}/t2i-00001.tar is missing")
  (out / prepared.MANIFEST).unlink()
  assert "a preparation that has not finished" in str(make())


def test_the_first_member_of_a_long_tar_costs_what_it_holds(tmp_path):
  """A tar is indexed without keeping its headers."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for i in range(50):
      tar.addfile(tarfile.TarInfo(f"{i}.jpg"))
  (tmp_path / "a.tar").write_bytes(buffer.getvalue())
  kept = []
  real = tarfile.TarFile.next

  def following(self):
    kept.append(len(self.members))
    return real(self)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tarfile.TarFile, "next", following)
    with pytest.raises(ValueError, match="50 × empty file"):
      opened.source("tar", str(tmp_path / "a.tar"), index=str(tmp_path / "i"))
  assert max(kept) <= 1

