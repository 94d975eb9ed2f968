"""Latents on disk belong to the images that they were computed from, and damage is named."""

import json
import os
import shutil

import numpy as np
import pytest

from tests import opened
from tests.data.prepare import small_datasets
from unilip_jax.data import decode, files, latent_rows, latents, sources
from unilip_jax.training import target_latents

_SPEC = sources.SourceSpec("tar", "data/*.tar")
_SHAPE = (1, 1, 3)


def _write(folder, first=0, text="words", time=None, count=5):
  """Writes data/0.tar of images first, first + 1 …, all of one size."""
  path = small_datasets.tar(folder / "data/0.tar", [
      (f"{i}.{suffix}", data) for i in range(count)
      for suffix, data in (("bmp", small_datasets.image(first + i, "BMP")), ("txt", text.encode()))])
  if time is not None:
    os.utime(path, ns=(time, time))
  return path


def _open(path="data/*.tar", index="index"):
  return opened.source("tar", path, example="t2i", index=index)


def _compute(root, source, spec=_SPEC, **fields):
  """Writes latents as training does; record i has the value i."""
  images = latents.images_of(source, "t2i")
  times = latents.times(images)
  layout = latent_rows.Layout(**{
      "fingerprint": "fp", "data": latents.mark(images), "times": times, "started": times,
      "source": str(spec), "count": len(images), "shape": _SHAPE, "dtype": "float32", "batch": 2,
      "processes": 1, "file_batches": 2} | fields)
  folder = latents.folder_of(root, "t2i", layout.data)
  rows = -(-layout.count // 2) * 2
  values = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None, None, None], (rows, *_SHAPE))
  digests = np.stack([latent_rows.digest(images[min(i, len(images) - 1)].parts["image"])
                      for i in range(rows)])
  for number, (name, length) in enumerate(layout.files()):
    part = slice(4 * number, 4 * number + 4)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(layout.encode(values[part], digests[part]))
    assert (folder / name).stat().length == length
  latent_rows.write_layout(folder, layout)
  return folder, layout


def _value(joined, index):
  return latents.from_bytes(joined[index].parts["latents"], _SHAPE)[0, 0, 0]


@pytest.fixture
def place(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def _valid(source, folder, layout):
  return target_latents._is_valid(latents.images_of(source, "t2i"), _SPEC, folder, layout, "fp")


def test_records_have_their_own_latents(place):
  _write(place)
  source = _open()
  _compute("root", source)
  joined = latents.join(source, "root", "t2i", _SPEC)
  assert [_value(joined, i) for i in range(5)] == [0, 1, 2, 3, 4]
  assert "image" not in joined[0].parts


@pytest.mark.parametrize("time", [None, 10**18])
def test_other_images_of_equal_number_size_and_time_are_refused(place, time):
  _write(place, first=0, time=time)
  _compute("root", _open())
  _write(place, first=100, time=time)
  with pytest.raises(latents.StaleError, match=(
      r"root/t2i-.* holds latents of 5 records that tar data/\*.tar had when they were computed; the data "
      r"has changed since, it has 5 records; delete that folder, or set another data.latents_dir")):
    latents.join(_open(), "root", "t2i", _SPEC)


def test_one_relative_path_in_two_working_directories_is_two_data_sets(tmp_path, monkeypatch):
  for name, first in (("a", 0), ("b", 100)):
    _write(tmp_path / name, first, time=10**18)
  monkeypatch.chdir(tmp_path / "a")
  _compute(tmp_path / "root", _open(index=str(tmp_path / "index")))
  monkeypatch.chdir(tmp_path / "b")
  with pytest.raises(latents.StaleError):
    latents.join(_open(index=str(tmp_path / "index")), tmp_path / "root", "t2i", _SPEC)


def test_the_same_data_has_its_latents_under_each_path_and_in_a_copy(place):
  path = _write(place)
  _compute("root", _open())
  shutil.copytree("root", "copy")
  os.makedirs("elsewhere/data")
  shutil.copy2(path, "elsewhere/data/0.tar")
  for data in (str(path), "elsewhere/data/*.tar", "elsewhere/../data/0.tar"):
    joined = latents.join(_open(data), "copy", "t2i", sources.SourceSpec("tar", data))
    assert _value(joined, 4) == 4


def test_a_folder_of_equal_files_has_the_same_latents_as_their_tar(place):
  _write(place)
  _compute("root", _open())
  for i in range(5):
    small_datasets.write(place / f"folder/{i}.bmp", small_datasets.image(i, "BMP"))
    small_datasets.write(place / f"folder/{i}.txt", "words")
  source = opened.source("folder", "folder", example="t2i")
  spec = sources.SourceSpec("folder", "folder")
  assert _value(latents.join(source, "root", "t2i", spec), 4) == 4
  small_datasets.write(place / "folder/3.bmp", small_datasets.image(100, "BMP"))
  source = opened.source("folder", "folder", example="t2i")
  with pytest.raises(FileNotFoundError, match="no latents of folder folder"):
    latents.join(source, "root", "t2i", spec)


def test_touched_copied_and_recaptioned_data_keeps_its_latents(place):
  _write(place)
  folder, layout = _compute("root", _open())
  for change in ({"time": 10**18}, {"text": "other words"}):
    _write(place, **change)
    source = _open()
    assert latents.times(source) != layout.times
    assert _valid(source, folder, layout)
    layout = latent_rows.read_layout(folder)
    assert layout.times == latents.times(source)
    assert latents.find("root", "t2i", _SPEC, latents.images_of(source, "t2i")) == (folder, layout)


def test_one_changed_image_outside_of_the_sample_is_found(place, monkeypatch):
  monkeypatch.setattr(latents, "_SAMPLE", 2)  # the first and the last one
  path = _write(place)
  folder, layout = _compute("root", _open())
  data = path.read_bytes()
  other = small_datasets.image(100, "BMP")
  path.write_bytes(data.replace(small_datasets.image(3, "BMP"), other))
  assert path.stat().st_size == len(data)
  source = _open()
  assert latents.find("root", "t2i", _SPEC, latents.images_of(source, "t2i")) == (folder, layout)
  with pytest.raises(latents.StaleError, match=r"other images than tar .* e.g. record 3; delete"):
    _valid(source, folder, layout)


def test_latents_of_an_earlier_version_are_refused(place):
  _write(place)
  source = _open()
  folder = place / "root" / f"t2i-{latents._earlier_name(_SPEC)}"
  small_datasets.write(folder / "manifest.json", json.dumps({
      "fingerprint": "fp", "count": 5, "shape": _SHAPE, "dtype": "float32", "batch": 2, "processes": 1}))
  with pytest.raises(latents.StaleError, match="of an earlier version, which did not note the data"):
    latents.join(source, "root", "t2i", _SPEC)


def test_another_encoder_is_refused(place):
  _write(place)
  source = _open()
  folder, layout = _compute("root", source, fingerprint="other")
  with pytest.raises(latents.StaleError, match="fingerprint other"):
    _valid(source, folder, layout)


def test_a_flipped_bit_is_a_broken_record_that_names_the_file(place):
  _write(place)
  source = _open()
  folder, layout = _compute("root", source)
  name, offset = layout.place(1)
  data = bytearray((folder / name).read_bytes())
  for at in (offset, offset + layout.latent_bytes + 3, offset + layout.row_bytes - 1):
    flipped = bytearray(data)
    flipped[at] ^= 4
    (folder / name).write_bytes(flipped)
    joined = latents.join(source, "root", "t2i", _SPEC)
    with pytest.raises(decode.BadRecordError, match=f"record 1 in .*{name} are damaged .* delete"):
      joined[1]
    assert [_value(joined, i) for i in (0, 2, 4)] == [0, 2, 4]


def test_rows_without_latents_are_broken_records(place):
  _write(place)
  source = _open()
  folder, layout = _compute("root", source)
  (folder / layout.file(0, 0)).write_bytes(layout.encode(
      np.full((4, *_SHAPE), np.nan, np.float32), np.zeros((4, latent_rows.DIGEST), np.uint8)))
  with pytest.raises(decode.BadRecordError, match="was broken when they were computed"):
    latents.join(source, "root", "t2i", _SPEC)[0]


@pytest.mark.parametrize("how", ["missing", "cut", "longer"])
def test_missing_and_cut_files_are_named_and_computed_again(place, caplog, how):
  _write(place)
  source = _open()
  folder, layout = _compute("root", source)
  path = folder / layout.file(1, 0)
  data = path.read_bytes()
  path.unlink() if how == "missing" else path.write_bytes(data[:-1] if how == "cut" else data + b"x")
  with pytest.raises(ValueError, match=f"1 files of latents are damaged: .*{layout.file(1, 0)} (is|has)"):
    latents.join(source, "root", "t2i", _SPEC)
  assert not _valid(source, folder, layout)
  assert f"damaged and computed again: {path}" in caplog.text


def test_latents_that_change_during_a_run_are_named(place):
  _write(place)
  source = _open()
  folder, layout = _compute("root", source)
  joined = latents.join(source, "root", "t2i", _SPEC)
  with (folder / layout.file(0, 0)).open("ab") as f:
    f.write(b"x")
  with pytest.raises(files.ChangedError, match="00000-00000.bin changed after it had been opened"):  # noqa: RUF043
    joined[0]


@pytest.mark.parametrize("change", [
    {"count": 0}, {"count": "5"}, {"batch": 3, "processes": 2}, {"shape": [1, 1]}, {"shape": 7},
    {"dtype": "float64"}, {"processes": True}, {"fingerprint": None}, {"extra": 1}, {"data": [1]}])
def test_a_manifest_that_is_none_is_an_error_with_its_name(place, change):
  _write(place)
  source = _open()
  folder, _ = _compute("root", source)
  path = folder / "manifest.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=r"manifest.json is not a manifest of latents .* delete"):
    latents.join(source, "root", "t2i", _SPEC)
  for text in ("", "[" * 100_000, '{"count": 5', "[]", "\x00"):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json is not a manifest of latents .* delete"):
      latents.join(source, "root", "t2i", _SPEC)


def test_a_latent_of_bfloat16_survives_its_row():
  layout = latent_rows.Layout("fp", "d", "t", "t", "s", 4, (2, 2, 3), "bfloat16", 4, 1, 1)
  values = np.arange(48, dtype=np.float32).reshape(4, 2, 2, 3)
  digests = np.arange(64, dtype=np.uint8).reshape(4, 16)
  data = layout.encode(values, digests)
  assert len(data) == 4 * layout.row_bytes == layout.file_bytes(0)
  latent, digest = layout.decode(data[2 * layout.row_bytes:3 * layout.row_bytes])
  np.testing.assert_array_equal(latent, values[2].reshape(-1))
  assert digest == digests[2].tobytes()
