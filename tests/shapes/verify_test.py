"""Scenes are read from clean and degraded images, and no scene is read from other images."""

import io
import time

import numpy as np
from PIL import Image, ImageFilter
import pytest

from unilip_jax.shapes import render, scene, verify

_COUNT = 150  # scenes of each of two splits


@pytest.fixture(scope="module")
def scenes():
  return [scene.sample(0, i, split) for split in ("test", "unseen") for i in range(_COUNT)]


@pytest.fixture(scope="module")
def images(scenes):
  return [render.render(s) for s in scenes]


def _rate(scenes, images):
  return np.mean([verify.verify(i) == s for s, i in zip(scenes, images)])


def _jpeg(image, quality):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "JPEG", quality=quality)
  return np.asarray(Image.open(buffer))


def _blur(image, sigma):
  return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _noisy(image, amplitude, rng):
  noise = rng.uniform(-amplitude, amplitude, image.shape) * 255
  return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def test_clean_images_are_read_exactly(scenes, images):
  assert _rate(scenes, images) == 1.0


def test_every_single_object_is_read_at_every_place():
  for row in range(3):
    for column in range(3):
      for shape in scene.SHAPES:
        for colour in scene.COLOURS:
          for size in scene.SIZES:
            background = scene.BACKGROUNDS[(row + column + len(colour)) % 4]
            one = scene.Scene((scene.Block(row, column, shape, colour, size),), background)
            assert verify.verify(render.render(one)) == one


def test_jpeg_does_no_harm(scenes, images):
  assert _rate(scenes, [_jpeg(i, 75) for i in images]) >= 0.99


def test_noise_does_no_harm(scenes, images):
  rng = np.random.default_rng(0)
  assert _rate(scenes, [_noisy(i, 0.02, rng) for i in images]) >= 0.99


@pytest.mark.parametrize("sigma", [1, 2, 3])
def test_blur_does_no_harm(scenes, images, sigma):
  assert _rate(scenes, [_blur(i, sigma) for i in images]) >= 0.99


def test_a_small_offset_does_no_harm(scenes, images):
  assert _rate(scenes, [np.roll(i, (1, -1), (0, 1)) for i in images]) >= 0.99


@pytest.mark.parametrize("size", [56, 96, 224, 448])
def test_other_sizes_are_read(scenes, size):
  some = scenes[::6]
  assert _rate(some, [render.render(s, size) for s in some]) == 1.0


def test_reading_is_fast(images):
  verify.read(images[0])  # templates
  start = time.process_time()
  for image in images[:100]:
    verify.read(image)
  assert (time.process_time() - start) / 100 < 15e-3


def test_what_is_spoilt_more_leaves_a_larger_residual(images):
  rng = np.random.default_rng(0)
  for image in images[:20]:
    residuals = [verify.read(_noisy(image, a, rng)).residual for a in (0, 0.02, 0.05, 0.2)]
    assert residuals == sorted(residuals)
    assert residuals[0] < 0.2
    assert residuals[-1] > 1


@pytest.mark.parametrize("background", scene.BACKGROUNDS)
def test_an_empty_image_has_no_object(background):
  empty = scene.Scene((), background)
  assert verify.verify(render.render(empty)) == empty


def _blank(value):
  return np.full((112, 112, 3), value, np.uint8)


@pytest.mark.parametrize("value", [0, 90, 200, (200, 40, 40), (0, 255, 0)])
def test_plain_images_of_other_colours_are_not_read(value):
  assert verify.verify(_blank(value)) is None


def test_noise_and_smears_hold_no_objects(images):
  rng = np.random.default_rng(0)
  noises = [rng.integers(0, 256, (112, 112, 3)).astype(np.uint8) for _ in range(30)]
  assert all(verify.verify(n) is None for n in noises)
  smears = [_blur(n, s) for n in noises for s in (2, 4, 6, 10)]
  smears += [_blank(140), *(_blur(i, s) for i in images for s in (8, 12))]
  for smear in smears:
    reading = verify.read(smear)
    assert not reading.clear or reading.scene.blocks == ()


def test_blends_of_scenes_are_not_read(images):
  for a, b in zip(images, images[::-1]):
    assert verify.verify(((a.astype(int) + b) // 2).astype(np.uint8)) is None


def test_half_transparent_objects_are_not_read(scenes, images):
  for one, image in zip(scenes, images):
    empty = render.render(scene.Scene((), one.background)).astype(int)
    reading = verify.read(((image + empty) // 2).astype(np.uint8))
    assert not reading.clear or reading.scene.blocks == ()


def test_an_unclear_reading_still_gives_the_closest_scene(scenes, images):
  rng = np.random.default_rng(0)
  reading = verify.read(_noisy(images[0], 0.1, rng))
  assert not reading.clear
  assert reading.residual > 1
  assert reading.scene == scenes[0]
  assert verify.read(_blank(90)).scene is None  # no background of the world


@pytest.mark.parametrize("image", [
    np.zeros((112, 112, 3), np.float32), np.zeros((112, 112), np.uint8),
    np.zeros((112, 112, 4), np.uint8)])
def test_other_arrays_are_refused(image):
  with pytest.raises(ValueError, match=r"uint8\[height, width, 3\]"):
    verify.read(image)


@pytest.mark.parametrize("canvas", ["wide", "tall"])
def test_scenes_of_other_canvases_are_read_like_squares(canvas):
  scenes = [scene.sample(5, i, "test") for i in range(40)]
  for size in (render.SIZE, 2 * render.SIZE):
    images = [render.render(one, size, canvas) for one in scenes]
    assert {image.shape[:2] for image in images} == {render.pixels(canvas, size)}
    assert verify.verify_all(images, canvas) == scenes
  squares = [render.render(one) for one in scenes]  # stretched to the canvas, objects have other shapes
  assert np.mean([a == b for a, b in zip(verify.verify_all(squares, canvas), scenes)]) < 0.2
  noise = np.random.default_rng(0).integers(0, 256, (4, *render.pixels(canvas), 3)).astype(np.uint8)
  assert verify.verify_all(noise, canvas) == [None] * 4
