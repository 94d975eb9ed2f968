"""Files and folders appear complete or not at all."""

import pytest

from unilip_jax.common import atomic_io


def _fail():
  raise OSError("no space left on device")


def test_a_file_appears_when_it_is_closed_and_replaces_the_former(tmp_path):
  place = tmp_path / "a.bin"
  place.write_bytes(b"former")
  with atomic_io.open_file(place) as stream:
    stream.write(b"new")
    stream.flush()
    assert place.read_bytes() == b"former"
  assert place.read_bytes() == b"new"
  assert list(tmp_path.iterdir()) == [place]


def test_a_failure_leaves_the_former_file_and_no_temporary_one(tmp_path):
  place = tmp_path / "a.bin"
  atomic_io.write(place, b"former")
  with pytest.raises(OSError, match="no space"), atomic_io.open_file(place) as stream:  # noqa: PT012
    stream.write(b"half")
    _fail()
  assert place.read_bytes() == b"former"
  assert list(tmp_path.iterdir()) == [place]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
  place = tmp_path / "a.bin"
  with atomic_io.open_file(place) as first, atomic_io.open_file(place) as second:
    first.write(b"first" * 1000)
    second.write(b"second")
  assert place.read_bytes() == b"first" * 1000  # the last to finish
  assert list(tmp_path.iterdir()) == [place]


def test_a_folder_replaces_a_former_one_of_its_kind_alone(tmp_path):
  place = tmp_path / "w"

  def write(mine):
    with atomic_io.Folder(place, overwrite=True, replaceable=lambda path: mine) as folder:
      (folder.path / "a.txt").write_text("new")
      folder.finish()

  place.mkdir()
  (place / "mine.txt").write_text("mine")
  with pytest.raises(ValueError, match="not replaced"):
    write(False)
  assert (place / "mine.txt").exists()
  write(True)
  assert [p.name for p in tmp_path.rglob("*")] == ["w", "a.txt"]
  with pytest.raises(OSError, match="no space"), atomic_io.Folder(  # noqa: PT012
      tmp_path / "other", overwrite=False, replaceable=lambda path: True) as folder:
    (folder.path / "a.txt").write_text("half")
    _fail()
  assert [p.name for p in tmp_path.iterdir()] == ["w"]
