"""Grids hold every image, unchanged, at its place."""

import io

import numpy as np
from PIL import Image
import pytest

from unilip_jax.common import image_grid


def _images(count, size=24, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def _contains(canvas, image):
  h, w = image.shape[:2]
  corners = np.argwhere((canvas[:-h + 1, :-w + 1] == image[0, 0]).all(-1))
  return any((canvas[y:y + h, x:x + w] == image).all() for y, x in corners)


def test_grid_holds_every_input_and_reconstruction():
  inputs, outputs = _images(5), _images(5, seed=1)
  png = image_grid.paired_rows({"input": inputs, "reconstruction": outputs}, columns=3)
  canvas = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
  assert all(_contains(canvas, image) for image in [*inputs, *outputs])


def test_wrong_arrays_are_named():
  with pytest.raises(ValueError, match=r"made: expected uint8.*float32"):
    image_grid.paired_rows({"input": _images(2), "made": _images(2).astype(np.float32)})
  with pytest.raises(ValueError, match="differ"):
    image_grid.paired_rows({"input": _images(2), "made": _images(3)})


def test_captions_stand_below_their_images_and_are_cut_to_their_width():
  images = np.stack([np.full((20, 30, 3), 80 * i, np.uint8) for i in range(3)])
  canvas = np.asarray(Image.open(io.BytesIO(
      image_grid.captioned(images, ["", "a", "a caption that is much too long"], columns=2))))
  assert canvas.shape == (2 * (20 + 18 + 4) + 4, 2 * (30 + 4) + 4, 3)
  np.testing.assert_array_equal(canvas[4:24, 38:68], images[1])
  np.testing.assert_array_equal(canvas[46:66, 4:34], images[2])
  assert (canvas[24:42, 4:34] == 255).all()  # no caption
  assert (canvas[66:84, 4:34] < 255).any()
  assert (canvas[66:84, 38:] == 255).all()  # a long caption ends with its image
