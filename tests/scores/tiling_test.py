"""The tiling of a result has the limit and how many tiles the images of the items had."""

import io

from PIL import Image
import pytest

from unilip_jax.data import tiles
from unilip_jax.scores import base, tiling


def _item(name, *sizes):
  images = []
  for size in sizes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, "PNG")
    images.append(out.getvalue())
  return base.Item(name, "?", "a", images=tuple(images))


def test_tiles_are_those_of_the_answers():
  sizes = [(448, 448), (896, 448), (900, 1000), (448, 1344), (30, 20)]
  items = [_item(str(i), size) for i, size in enumerate(sizes)]
  counts = sorted(len(tiles.tiles(Image.new("RGB", size), 448, 6)) for size in sizes)
  text = ", ".join(f"{n}: {counts.count(n)}" for n in sorted(set(counts)))
  assert tiling.describe(items, 448, 6) == (
      f"dynamic, at most 6 tiles of 448 pixels and a thumbnail; images by tiles: {text}")
  assert tiling.describe(items, 448, 1) == "one tile of 448 pixels, stretched; images by tiles: 1: 5"
  assert tiling.describe([_item("text")], 448, 1).endswith("none")


def test_several_images_share_tiles_and_the_first_may_be_enlarged():
  item = _item("several", *[(448 * 9, 448)] * 8)  # 64 tiles over 8 images
  assert tiling.describe([item], 448, 12).endswith(
      "images by tiles: 9: 8; 1 questions have several images")
  small = _item("small", (448, 224), (448, 224))
  assert "images by tiles: 3: 2;" in tiling.describe([small], 448, 12)
  one = _item("one", (448, 448))
  assert tiling.describe([one], 448, 12).endswith("images by tiles: 1: 1")
  assert tiling.describe([one], 448, 12, first_image_scale=2).endswith("images by tiles: 5: 1")


def test_an_image_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(ValueError, match="item x: its image cannot be read"):
    tiling.describe([base.Item("x", "?", "a", images=(b"no image",))], 448, 6)
  with pytest.raises(FileNotFoundError, match="item y: no image"):
    tiling.describe([base.Item("y", "?", "a", images=(str(tmp_path / "y.png"),))], 448, 6)
