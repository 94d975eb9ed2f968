"""A run on own data shows what it trains on before weights are read, or refuses it."""

from absl import logging
from PIL import Image
import pytest

from tests import micro
from tests.data.own import folders
from unilip_jax.data.own import apply
from unilip_jax.training import first_look


def _write(workdir, stage="gen2", **fields):
  config = apply.apply(micro.text_config(stage, **fields))
  first_look.write(config, str(workdir))


@pytest.mark.parametrize(("stage", "make", "line"), [
  ("gen2", folders.captioned, "4 records for the example t2i"),
  ("gen3", folders.edits, "4 records for the example edit"),
  ("stage2", folders.captioned, "4 records for the example reconstruct")])
def test_a_grid_and_facts_are_shown(stage, make, line, tmp_path, caplog):
  logging.set_verbosity(logging.INFO)
  with caplog.at_level("INFO", logger="absl"):
    _write(tmp_path, stage, data__own=str(make(tmp_path / "own")))
  assert line in caplog.text
  assert f"what the model gets: {tmp_path}/own_data.png" in caplog.text
  width, height = Image.open(tmp_path / "own_data.png").size
  assert min(width, height) > micro.IMAGE_SIZE


def test_images_are_shown_in_their_buckets(tmp_path, caplog):
  logging.set_verbosity(logging.INFO)
  folder = folders.write(folders.captioned(tmp_path / "own"), {})
  with caplog.at_level("INFO", logger="absl"):
    _write(tmp_path, data__own=str(folder), data__buckets=((28, 56), (56, 56), (56, 28)))
  assert "the model gets the nearest of 3 sizes (stretch)" in caplog.text
  assert (tmp_path / "own_data.png").exists()


def test_other_data_is_not_looked_at(tmp_path):
  _write(tmp_path)
  assert not list(tmp_path.iterdir())


def test_incomplete_data_is_refused(tmp_path):
  folder = folders.write(folders.captioned(tmp_path / "own"), {"lonely.png": folders.png(1)})
  with pytest.raises(ValueError, match=r"1 of 5 records are left out, more than data.max_bad_fraction"):
    _write(tmp_path, data__own=str(folder))
