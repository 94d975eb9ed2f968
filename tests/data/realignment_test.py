"""Rows of images to rebuild: input and target are one image, cropped alike, from any kind of source."""

import io

import numpy as np
from PIL import Image
import pytest

from tests import micro
from unilip_jax.configs import reca
from unilip_jax.data import decode, examples, realignment, sources
from unilip_jax.data import text as text_lib

_FOLDERS = sources.Folders("", "")


@pytest.fixture
def spec(tmp_path):
  return sources.SourceSpec("folder", str(micro.write_images(tmp_path / "images", 30)), {"same": True})


def test_input_and_target_are_the_same_crop(spec):
  config = reca.get_config("tiny")
  source = sources.open_source(spec, example="edit", folders=_FOLDERS)
  record = source[3]
  example = examples.make("edit", config)(record, np.random.default_rng(0))
  np.testing.assert_array_equal(example["image"], example["cond_image"][0])
  image = Image.open(io.BytesIO(record.parts["image"]))
  np.testing.assert_array_equal(
      example["image"], decode.fit(np.asarray(image), config.image_size, "center"))


def test_templates_alternate_and_fit_at_tiny(spec):
  source = sources.open_source(spec, example="edit", folders=_FOLDERS)
  texts = [source[i].parts["text"].decode() for i in range(len(source))]
  assert set(texts) == set(realignment.TEMPLATES)
  assert not set(realignment.TEMPLATES) & set(realignment.HELD_OUT)
  config, layout = reca.get_config("tiny"), text_lib.Text("shapes")
  for text in (*realignment.TEMPLATES, *realignment.HELD_OUT):
    _, mask = layout.editing(text, 16, 512)
    assert mask.sum() <= config.text.edit_length, text


def test_the_option_is_for_edits_alone_and_others_are_still_refused(spec):
  with pytest.raises(ValueError, match=r"same.*is for rows of data.edit"):
    sources.open_source(spec, example="t2i", folders=_FOLDERS)
  with pytest.raises(ValueError, match="unknown option other; known: same"):
    sources.check_source(sources.SourceSpec("folder", spec.path, {"other": 1}), "data.edit")


@pytest.mark.parametrize("size", ["tiny", "1b"])
def test_half_of_a_batch_are_images_to_rebuild(size):
  config = reca.get_config(size)
  weights = {row[3]["same"] if len(row) == 4 else False: row[2] for row in config.data.edit}
  assert config.data.edit_share * weights[True] / sum(weights.values()) == pytest.approx(0.5)
