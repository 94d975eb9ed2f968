"""Every problem of a folder of images is named."""

from PIL import Image
import pytest

from tests.scores import fakes, made_up
from unilip_jax.scores import base, image_files


@pytest.fixture
def folder(tmp_path):
  benchmark = fakes.Colors()
  fakes.write_images(tmp_path, benchmark, benchmark.read_items(""))
  return tmp_path


def _check(folder, **options):
  benchmark = fakes.Colors()
  return image_files.check(benchmark, benchmark.read_items(""), folder, **options)


def test_a_complete_folder_has_no_problem(folder):
  found = _check(folder)
  assert len(found.files) == 24
  assert found.lines() == []
  assert found.read(("3", 1)) == (folder / "3/00001.png").read_bytes()


def test_each_problem_is_named(folder):
  (folder / "0/00000.png").unlink()
  content = (folder / "1/00000.png").read_bytes()
  (folder / "1/00000.png").write_bytes(content[:-20])
  Image.new("RGB", (9, 8)).save(folder / "2/00000.png")
  (folder / "3/00000.png").write_bytes((folder / "4/00000.png").read_bytes())
  (folder / "5/0.png").write_bytes(content)
  (folder / "5/00000.jpg").write_bytes(content)
  (folder / "stray.png").write_bytes(content)
  (folder / "6/grid.png").write_bytes(content)
  lines = _check(folder).lines()
  assert lines[0] == "missing: image 0 of item 0"
  assert lines[1].startswith("unreadable: 1/00000.png: ")
  assert lines[2] == "wrong size: 2/00000.png: 9×8, expected 8×8"
  assert lines[3] == "identical: 4/00000.png has the bytes of 3/00000.png"
  doubled = "resembles 5/00000.png: a doubled id or another suffix"
  assert lines[4:] == [f"unknown: 5/0.png {doubled}", f"unknown: 5/00000.jpg {doubled}",
                       "unknown: stray.png"]


def test_what_a_layout_holds_next_to_the_images_is_known(tmp_path):
  copy, benchmark = made_up.make("gedit", tmp_path / "items"), base.find("gedit")
  items = benchmark.read_items(str(copy.items))
  for item in items:
    for path in (benchmark.output_path(item, 0), *benchmark.side_files(item)):
      made_up.write_image(tmp_path / "images" / path, int(item.id, 16))
  found = image_files.check(benchmark, items, tmp_path / "images")
  assert (len(found.files), found.unknown) == (12, [])


def test_a_size_and_a_number_of_images_can_be_required(folder):
  assert len(_check(folder, size=448).wrong_size) == 24
  assert len(_check(folder, images_per_item=4).missing) == 24


def test_a_folder_of_something_else_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="no folder of images"):
    _check(tmp_path / "absent")
  with pytest.raises(FileNotFoundError, match=r"expected for example 0/00000\.png"):
    _check(tmp_path)
