"""Images of users are read as in training, or refused in words that name type, shape and remedy."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from unilip_jax.infer import user_images

_RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)


def _read(images):
  given, single = user_images.as_list(images)
  return user_images.as_arrays(given), single


@pytest.mark.parametrize(("images", "single"), [
    (lambda p: _RGB, True), (lambda p: Image.fromarray(_RGB), True), (lambda p: jnp.asarray(_RGB), True),
    (lambda p: p, True), (str, True), (lambda p: [p], False), (lambda p: (_RGB,), False),
    (lambda p: _RGB[None], False), (lambda p: (Image.fromarray(_RGB) for _ in range(1)), False)])
def test_every_form_of_an_image_is_the_same_pixels(images, single, tmp_path):
  path = tmp_path / "a b [1].png"
  Image.fromarray(_RGB).save(path)
  (pixels,), is_single = _read(images(path))
  np.testing.assert_array_equal(pixels, _RGB)
  assert is_single is single


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((6, 5), np.uint8), r"not uint8\[6, 5\]; PIL.Image.fromarray makes an image"),
    (np.zeros((6, 5, 1), np.uint8), r"not uint8\[6, 5, 1\]"),
    (np.zeros((6, 5, 4), np.uint8), r"not uint8\[6, 5, 4\]; PIL.Image.fromarray"),
    (np.zeros((6, 5), np.uint16), r"not uint16\[6, 5\]; PIL.Image.fromarray"),
    (np.zeros((6, 5, 3), np.float32), r"not float32\[6, 5, 3\]; scale the values to 0 … 255"),
    (np.zeros((6, 5, 3), np.bool_), r"not bool\[6, 5, 3\]; scale"),
    (np.zeros((3, 6, 5), np.uint8), r"not uint8\[3, 6, 5\]; move the channels"),
    (np.zeros((0, 5, 3), np.uint8), r"not uint8\[0, 5, 3\]"),
    (np.float64(1), r"not float64\[\]"),
    (b"\x89PNG", "images are bytes"), (None, "images are NoneType"), (3, "images are int 3"),
    ([], "no image was given"), (np.zeros((0, 6, 5, 3), np.uint8), "no image was given"),
    ([None, 3], "image 1 is int 3"), ([b"x"], "image 0 is bytes"),
    ("https://example.com/a.png", "is a URL; download the image"), ("data:image/png;base64,AA", "is a URL"),
])
def test_other_values_are_refused_in_words(image, message):
  with pytest.raises(ValueError, match=message):
    _read(image)


def test_paths_without_an_image_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no image .*none\.png"):
    user_images.as_array(tmp_path / "none.png")
  with pytest.raises(ValueError, match=rf"is not a file; it is a folder: .* {tmp_path}/\*\.jpg"):
    user_images.as_array(tmp_path)
  broken = tmp_path / "broken.png"
  broken.write_text("no image")
  with pytest.raises(ValueError, match=r"broken.png: not an image of a known format"):
    user_images.as_array(broken)
  phone = broken.rename(tmp_path / "x.HEIC")
  with pytest.raises(ValueError, match=r"x.HEIC: HEIC files are not read: convert them to JPEG or PNG"):
    user_images.as_array(phone)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  Image.fromarray(_RGB).save(tmp_path / "a.png")
  np.testing.assert_array_equal(user_images.as_array("~/a.png"), _RGB)
  np.testing.assert_array_equal(user_images.as_array(pathlib.Path("~/a.png")), _RGB)


def test_a_pipe_or_a_device_is_no_image(tmp_path):
  os.mkfifo(tmp_path / "a.png")
  for path in (tmp_path / "a.png", "/dev/zero"):
    with pytest.raises(ValueError, match="is not a file"):
      user_images.as_arrays([str(path)])
