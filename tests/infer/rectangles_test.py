"""Images of any rectangle are generated, and edits keep the shapes of their inputs."""

import numpy as np
import pytest

from tests.infer import recorded


@pytest.fixture(scope="module")
def model(golden, tmp_path_factory):
  """The recorded official folder."""
  return recorded.imported(golden, tmp_path_factory.mktemp("hf"), "ckpt/unilip_hf")


def test_each_edit_keeps_the_shape_of_its_input(model):
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            for size in ((30, 50), (50, 50), (33, 55))]
  texts = [f"make it {colour}" for colour in ("red", "blue", "green")]
  options = dict(steps=2, seed=3, output="array")
  together = model.edit(images, texts, keep_shape=True, **options)
  assert [x.shape for x in together] == [(84, 140, 3), (112, 112, 3), (84, 140, 3)]
  # The sample of an image is that of its place in the call, whatever the others' shapes are.
  square = model.edit(images, texts, **options)
  assert np.abs(square[1].astype(int) - together[1]).max() <= 1
  at = (0, 2, 2)
  wide = model.edit([images[i] for i in at], [texts[i] for i in at], size=(84, 140), **options)
  assert np.abs(wide[2].astype(int) - together[2]).max() <= 1
  assert np.abs(wide[1].astype(int) - together[2]).max() > 1
  assert model.edit(images[0], "a", keep_shape=True, keep_size=True, steps=2).size == (50, 30)


def test_an_image_of_any_rectangle_is_generated(model):
  noise = np.random.default_rng(0).standard_normal((1, 3, 5, 32)).astype(np.float32)
  images = [model.generate("two cats", steps=2, size=(84, 140), latents=noise, output="array")
            for _ in range(2)]
  assert images[0].shape == (84, 140, 3)
  np.testing.assert_array_equal(*images)
  square = model.generate("two cats", steps=2, output="array")
  same = model.generate("two cats", steps=2, size=(112, 112), output="array")
  np.testing.assert_array_equal(square, same)
