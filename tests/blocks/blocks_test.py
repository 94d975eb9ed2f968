"""Blocks scenes are deterministic, split without overlap, rendered clearly and written once."""

import json
import tarfile

import numpy as np
import pytest

from unilip_jax.blocks import render, scene, write


def test_scenes_are_a_pure_function_of_seed_and_index():
  assert scene.sample(0, 5, "train") == scene.sample(0, 5, "train")
  assert scene.sample(0, 5, "train") != scene.sample(1, 5, "train")


def test_splits_never_overlap_and_training_never_shows_held_out_combinations():
  train = {scene.sample(0, i, "train") for i in range(400)}
  test = {scene.sample(0, i, "test") for i in range(400)}
  assert not train & test
  assert not any(s.is_held_out for s in train)
  assert any(s.is_held_out for s in test)
  assert any(not s.is_held_out for s in test)


def test_json_round_trip():
  one = scene.sample(3, 7, "test")
  assert scene.Scene.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_objects_share_no_cell():
  block = scene.Block(0, 0, "circle", "red", "small")
  with pytest.raises(ValueError, match="one a cell"):
    scene.Scene((block, block), "white")


@pytest.mark.parametrize("shape", scene.SHAPES)
def test_objects_stand_in_their_colour_at_their_cell(shape):
  for size in scene.SIZES:
    one = scene.Scene((scene.Block(1, 2, shape, "blue", size),), "cream")
    image = render.render(one).astype(int)
    y, x = (int(v) for v in render.cell_centre(1, 2))
    assert np.abs(image[y, x] - render.RGB["blue"]).max() < 15
    assert np.abs(image[20, 20] - render.BACKGROUND_RGB["cream"]).max() < 15


def test_shapes_differ_clearly():
  images = [render.render(scene.Scene((scene.Block(1, 1, s, "red", "small"),), "white")).astype(int)
            for s in scene.SHAPES]
  for i, a in enumerate(images):
    for b in images[i + 1:]:
      assert (np.abs(a - b).max(-1) > 60).sum() > 30  # pixels that tell the two apart


def test_rendering_scales_with_the_resolution():
  one = scene.sample(0, 0, "train")
  small, large = render.render(one, 56), render.render(one, 224)
  reduced = large.reshape(56, 4, 56, 4, 3).mean((1, 3))
  assert np.abs(reduced - small).mean() < 4


def test_tars_are_written_once_and_again_only_for_other_settings(tmp_path):
  paths = write.ensure_tars(tmp_path, "test", count=5, workers=1)
  with tarfile.open(paths[0]) as tar:
    names = tar.getnames()
    caption = tar.extractfile("test0000003.txt").read().decode()
  assert names[:3] == ["test0000000.jpg", "test0000000.txt", "test0000000.json"]
  assert len(names) == 15
  assert caption == scene.describe(scene.sample(0, 3, "test"))
  before = paths[0].stat().mtime
  assert write.ensure_tars(tmp_path, "test", count=5, workers=1) == paths
  assert paths[0].stat().mtime == before
  write.ensure_tars(tmp_path, "test", count=6, workers=1)
  with tarfile.open(paths[0]) as tar:
    assert len(tar.getnames()) == 18
