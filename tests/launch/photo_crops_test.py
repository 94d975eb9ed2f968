"""Crops are the same each time, and no pixel of a test crop is in a training crop."""

import importlib.util
import pathlib

import numpy as np
from PIL import Image
import pytest

_SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "launch/photo_crops.py"


@pytest.fixture(scope="module")
def photo_crops():
  spec = importlib.util.spec_from_file_location("photo_crops", _SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("width", [320, 512, 2000])
def test_training_and_test_parts_share_no_column(photo_crops, width):
  columns = np.broadcast_to(np.arange(width, dtype=np.int32), (200, width))
  photograph = Image.fromarray(np.ascontiguousarray(columns))  # a pixel is its column's number
  train, test = (np.asarray(photo_crops._part(photograph, s)) for s in ("train", "test"))
  assert train.max() < test.min()
  assert train.shape[1] + test.shape[1] == width
  assert min(train.shape[1], test.shape[1]) >= 160  # at least as wide as a crop


def test_every_photograph_gives_crops_of_both_splits(photo_crops, tmp_path, monkeypatch):
  monkeypatch.setattr(photo_crops, "_COUNTS", {"train": 3, "test": 2})
  for folder in ("once", "again"):
    monkeypatch.setattr("sys.argv", ["photo_crops.py", f"--out={tmp_path / folder}"])
    photo_crops.main()
  for split, count in (("train", 9), ("test", 6)):  # of three photographs
    files = sorted((tmp_path / "once" / split).iterdir())
    assert len(files) == count
    for file in files:
      assert Image.open(file).size == (160, 160)
      assert file.read_bytes() == (tmp_path / "again" / split / file.name).read_bytes()
