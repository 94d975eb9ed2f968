"""Tiles keep the image's aspect ratio, cover all of it, and end with a thumbnail."""

import numpy as np
from PIL import Image
import pytest

from unilip_jax.data import tiles


@pytest.mark.parametrize(("size", "grid"), [
    ((448, 448), (1, 1)), ((100, 100), (1, 1)), ((896, 896), (2, 2)), ((900, 450), (2, 1)),
    ((450, 1800), (1, 4)), ((1344, 896), (3, 2)), ((4000, 4000), (3, 3)), ((448, 300), (3, 2))])
def test_the_grid_equals_internvls(size, grid):
  # Expected values from InternVL's published rule, worked by hand.
  assert tiles.grid_for(*size, 448, 12) == grid


def test_tiles_hold_the_image_row_by_row_and_a_thumbnail():
  pixels = np.random.default_rng(0).integers(0, 256, (56, 112, 3)).astype(np.uint8)
  out = tiles.tiles(Image.fromarray(pixels), 56, 12)
  assert out.shape == (3, 56, 56, 3)
  np.testing.assert_array_equal(out[0], pixels[:, :56])
  np.testing.assert_array_equal(out[1], pixels[:, 56:])


def test_one_tile_has_no_thumbnail():
  assert tiles.tiles(Image.new("RGB", (300, 50)), 56, 1).shape == (1, 56, 56, 3)
