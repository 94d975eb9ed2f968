"""Paths are expanded and checked by one set of rules."""

import os
import pathlib

import pytest

from unilip_jax.common import paths

_PACKAGE = pathlib.Path(paths.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)


def test_home_folders_and_slashes_at_the_end(tmp_path):
  assert paths.expand("~/x") == f"{tmp_path}/home/x"
  assert paths.expand("~") == f"{tmp_path}/home"
  assert paths.expand("~root/x") == os.path.expanduser("~root") + "/x"
  assert paths.expand("a b/c//") == "a b/c"
  assert paths.expand("/") == "/"
  assert paths.expand("gs://b/x/") == "gs://b/x"
  assert paths.absolute("x/../y") == f"{tmp_path}/y"
  assert paths.absolute("gs://b/x") == "gs://b/x"
  assert paths.expand("shapes:gen3") == "shapes:gen3"


@pytest.mark.parametrize(("path", "message"), [
    ("", "--out is empty"), ("  ", "--out is empty"),
    ("s3://b/x", "s3:// is not supported; paths are local or gs://"),
    ("https://h/x", "https:// is not supported"),
    ("file:///data/x", "write a local path without a scheme: /data/x"),
    ("hf://org/name", "convert import --source"),
    ("GS://b/x", "write gs://b/x"), ("gs:/b/x", "write gs://b/x"), ("gs:b/x", "write gs://b/x"),
    ("gs://", "names no bucket"), ("~nobody_of_this_name/x", "no user 'nobody_of_this_name'"),
    ("a\0b", "zero byte")])
def test_a_form_that_cannot_be_meant_is_refused(path, message):
  with pytest.raises(paths.PathError, match=message):
    paths.expand(path, "--out")


def test_what_is_read_must_exist_and_be_of_its_kind(tmp_path):
  (tmp_path / "file").write_text("x")
  (tmp_path / "folder").mkdir()
  (tmp_path / "dangling").symlink_to("gone")
  assert os.fspath(paths.existing_file("file", "--images")) == "file"
  assert os.fspath(paths.existing_folder("folder/", "--source")) == "folder"
  for read, path, message in (
      (paths.existing_file, "folder", "--x=folder is a folder; a file is needed"),
      (paths.existing_folder, "file", "--x=file is a file; a folder is needed"),
      (paths.existing_file, "/dev/null", "no regular file"),
      (paths.existing_file, "file/x", "file is a file, not a folder"),
      (paths.existing_file, "no/a/b", "--x=no/a/b does not exist: there is no no"),
      (paths.existing_folder, "dangling/a", "dangling is a link to gone, which does not exist")):
    with pytest.raises((paths.PathError, FileNotFoundError), match=message):
      read(path, "--x")


def test_what_is_written_is_checked_and_not_made(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("x")
  (tmp_path / "dangling").symlink_to("gone")
  assert os.fspath(paths.output_folder("~/new/deep", "--out")) == f"{tmp_path}/home/new/deep"
  assert not (tmp_path / "home").exists()
  for check, path, message in (
      (paths.output_folder, "file", "--out=file is a file; give a folder"),
      (paths.output_folder, "file/a", "file is a file, not a folder"),
      (paths.output_folder, "dangling/a", "dangling is a link to gone"),
      (paths.output_file, ".", "is a folder; give a file"),
      (paths.output_file, "new/", "names a folder; give a file")):
    with pytest.raises(paths.PathError, match=message):
      check(path, "--out")
  monkeypatch.setattr(os, "access", lambda *_: False)
  with pytest.raises(paths.PathError, match="no permission to write to"):
    paths.output_folder("new", "--out")


def test_characters_of_patterns_that_exist_are_literal(tmp_path):
  for folder in ("a[1]", "a1", "*", "x, y"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "0.tar").write_text("")
  (tmp_path / "a[1]/q?.tar").write_text("")
  assert paths.matches("a[1]/*.tar") == ["a[1]/0.tar", "a[1]/q?.tar"]
  assert paths.matches("a[1]/q?.tar") == ["a[1]/q?.tar"]
  assert paths.matches("*/0.tar") == ["*/0.tar"]  # exists as written
  assert paths.matches("a?/0.tar") == ["a1/0.tar"]
  assert paths.matches("**/0.tar") == ["*/0.tar", "a1/0.tar", "a[1]/0.tar", "x, y/0.tar"]
  assert paths.split("x, y") == ["x, y"]
  assert paths.split("a1, x,") == ["a1", "x"]


def test_the_package_expands_paths_in_one_place():
  places = {str(p.relative_to(_PACKAGE)) for p in _PACKAGE.rglob("*.py")
            if "expanduser" in p.read_text() or "glob.glob" in p.read_text()}
  assert places == {"common/paths.py"}
