"""Bytes are kept unless smaller images are requested; every skipped item has a reason."""

import io
import os

from PIL import Image
import pytest

from tests.data.prepare import small_datasets
from unilip_jax.data.prepare import items, record


def _item(path, **parts):
  return items.Item("here", "0", {"image": ("file", str(path)), "text": ("text", "a b")} | parts)


def _make(path, **rules):
  return record.make(_item(path), record.Rules("t2i", **rules))


@pytest.mark.parametrize(("fmt", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_bytes_are_kept_and_the_suffix_is_what_the_image_is(tmp_path, fmt, suffix):
  path = small_datasets.write(tmp_path / "wrong.gif", small_datasets.image(0, fmt))
  sample = _make(path)
  assert sample.parts["image"] == (suffix, path.read_bytes())
  edit = record.make(_item(path, cond_image=("file", str(path))), record.Rules("edit"))
  assert [edit.parts[p][0] for p in ("cond_image", "image")] == [f"input.{suffix}", f"output.{suffix}"]


def test_only_larger_images_are_resized_and_encoded_again(tmp_path):
  path = small_datasets.write(tmp_path / "a.png", small_datasets.image(0, size=(60, 40)))
  assert _make(path, shorter_edge=40).parts["image"] == ("png", path.read_bytes())
  suffix, data = _make(path, shorter_edge=20).parts["image"]
  assert suffix == "jpg"
  assert Image.open(io.BytesIO(data)).size == (30, 20)
  assert _make(path, shorter_edge=20).parts["image"] == (suffix, data)


@pytest.mark.parametrize("verify", record.VERIFY)
def test_truncated_images_are_found_where_they_are_decoded(tmp_path, verify):
  data = small_datasets.image(0, "JPEG", (64, 64))
  path = small_datasets.write(tmp_path / "a.jpg", data[:len(data) // 2])
  if verify == "header":
    assert _make(path, verify=verify).parts["image"][1] == path.read_bytes()
  else:
    with pytest.raises(record.Skipped, match=r"^broken image: image, .*a.jpg: OSError: image file"):
      _make(path, verify=verify)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_and_large_files_are_skipped_unread(tmp_path, monkeypatch):
  buffer = io.BytesIO()
  Image.new("1", (12_000, 10_000)).save(buffer, "PNG")  # 120 megapixels in a few kilobytes
  path = small_datasets.write(tmp_path / "bomb.png", buffer.getvalue())
  monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
  with pytest.raises(record.Skipped, match=r"broken image: .*12000×10000 pixels exceed max_pixels"):
    _make(path, max_pixels=10**8)
  with pytest.raises(record.Skipped, match=r"too large: .* has \d+ bytes \(--max_file_bytes=1000\)"):
    _make(path, max_file_bytes=1000)


def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe.png")
  with pytest.raises(record.Skipped, match="missing file"):
    _make(tmp_path / "pipe.png")


def test_a_file_that_cannot_be_read_stops_the_run(tmp_path, monkeypatch):
  from etils import epath

  path = small_datasets.write(tmp_path / "a.png", small_datasets.image(0))

  def fail(self):
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(type(epath.Path(path)), "read_bytes", fail)
  with pytest.raises(OSError, match="Input/output error"):
    _make(path)
