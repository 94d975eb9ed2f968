"""Scenes are rendered deterministically, with every object in its place and colour."""

import numpy as np
import pytest

from unilip_jax.shapes import render, scene


def _single(shape, colour="red", size="small", background="white", row=1, column=1):
  return scene.Scene((scene.Block(row, column, shape, colour, size),), background)


def test_a_scene_has_one_rendering():
  one = scene.sample(0, 3, "train")
  image = render.render(one)
  assert image.shape == (render.SIZE, render.SIZE, 3)
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, render.render(one))


@pytest.mark.parametrize("shape", scene.SHAPES)
def test_objects_have_their_colour_at_their_cell(shape):
  for size in scene.SIZES:
    image = render.render(_single(shape, "blue", size, "cream", 1, 2)).astype(int)
    y, x = (int(v) for v in render.cell_centre(1, 2))
    assert np.abs(image[y, x] - render.RGB["blue"]).max() < 15
    assert np.abs(image[20, 20] - render.BACKGROUND_RGB["cream"]).max() < 15


@pytest.mark.parametrize("shape", scene.SHAPES)
def test_large_objects_stay_inside_their_cell(shape):
  one = render.render(_single(shape, size="large", row=0, column=0)).astype(int)
  other = render.render(_single(shape, size="large", row=0, column=0, colour="blue")).astype(int)
  changed = np.flatnonzero((one != other).any((1, 2)))
  assert changed.min() > 0  # complete: nothing is cut at the border
  assert changed.max() < render.SIZE / scene.GRID
  columns = np.flatnonzero((one != other).any((0, 2)))
  assert columns.min() > 0
  assert columns.max() < render.SIZE / scene.GRID


def test_shapes_differ_clearly():
  images = [render.render(_single(s)).astype(int) for s in scene.SHAPES]
  for i, a in enumerate(images):
    for b in images[i + 1:]:
      assert (np.abs(a - b).max(-1) > 60).sum() > 30  # pixels that tell the two apart


def test_colours_differ_from_each_other_and_from_backgrounds():
  colours = [np.array(c) for c in render.RGB.values()]
  for i, a in enumerate(colours):
    others = [*colours[i + 1:], *(np.array(c) for c in render.BACKGROUND_RGB.values())]
    assert min(np.abs(a - b).max() for b in others) > 35  # gradient and texture move it by < 10


def test_edges_are_anti_aliased_and_surfaces_textured():
  image = render.render(_single("circle", "red", "large")).astype(int)
  inside = image[48:64, 48:64, 0]
  assert 2 < np.ptp(inside) < 20  # stripes and light
  green = image[:, :, 1]  # white ground against red
  between = (green > 80) & (green < 200)
  assert 30 < between.sum() < 120  # about one pixel wide along a circle of 88 pixels


def test_rendering_scales_with_the_resolution():
  one = scene.sample(0, 0, "train")
  small, large = render.render(one, 56), render.render(one, 224)
  reduced = large.reshape(56, 4, 56, 4, 3).mean((1, 3))
  assert np.abs(reduced - small).mean() < 4


def test_unknown_shapes_are_refused():
  with pytest.raises(ValueError, match="star"):
    render.distance("star", np.zeros((1, 1)), np.zeros((1, 1)), 1.0)
