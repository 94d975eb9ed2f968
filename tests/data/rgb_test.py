"""Every mode of an image becomes the same RGB in training and in the Python API; guesses are named."""

import io
import struct

import numpy as np
from PIL import Image
import pytest

from unilip_jax.data import decode, rgb
from unilip_jax.infer import user_images

_TRANSPARENT = "transparency is not applied: the colours below it are used"
_MAX = 10_000_000
_RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
_RAMP = np.linspace(0, 65535, 63).reshape(9, 7)


def _file(image, fmt, **options):
  buffer = io.BytesIO()
  image.save(buffer, fmt, **options)
  return buffer.getvalue()


def _exif(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return exif.tobytes()


def _image():
  return Image.fromarray(_RGB)


def _half_clear(mode):
  image = _image().convert("RGBA")
  alpha = np.zeros((9, 7), np.uint8)
  alpha[:, 3:], alpha[0, 0] = 255, 100
  image.putalpha(Image.fromarray(alpha))
  return image.convert(mode)


def _big_endian():
  """A TIFF of 16 bits whose bytes are in the order of Motorola."""
  image = Image.fromarray(_RAMP.astype(np.uint16))
  return _file(Image.frombytes("I;16B", image.size, _RAMP.astype(">u2").tobytes()), "TIFF")


_FILES = {
    "1": _file(_image().convert("1"), "PNG"),
    "L": _file(_image().convert("L"), "PNG"),
    "L transparent": _file(_image().convert("L"), "PNG", transparency=int(_RGB[0, 0].mean())),
    "LA": _file(_half_clear("LA"), "PNG"),
    "P": _file(_image().convert("P"), "PNG"),
    "P transparent": _file(
        _image().convert("P"), "PNG", transparency=_image().convert("P").getpixel((0, 0))),
    "P alphas": _file(_half_clear("RGBA").quantize(16), "PNG"),
    "GIF": _file(_image(), "GIF", save_all=True, append_images=[Image.new("RGB", (7, 9), "blue")]),
    "RGB": _file(_image(), "PNG"),
    "RGB transparent": _file(_image(), "PNG", transparency=tuple(int(x) for x in _RGB[0, 0])),
    "RGBA": _file(_half_clear("RGBA"), "PNG"),
    "RGBA WebP": _file(_half_clear("RGBA"), "WEBP", lossless=True),
    "CMYK Adobe": _file(_image().convert("CMYK"), "JPEG"),
    "CMYK": _file(_image().convert("CMYK"), "TIFF"),
    "YCbCr": _file(_image(), "JPEG"),
    "EXIF": _file(_image(), "JPEG", exif=_exif(6)),
    "profile": _file(_image(), "JPEG", icc_profile=b"\0" * 36 + b"acsp" + b"Adobe RGB (1998)" * 9),
    "I;16": _file(Image.fromarray(_RAMP.astype(np.uint16)), "PNG"),
    "I;16B": _big_endian(),
    "I": _file(Image.fromarray(_RAMP.astype(np.int32)), "TIFF"),
    "I dark": _file(Image.fromarray((_RAMP / 300).astype(np.int32)), "TIFF"),
    "F": _file(Image.fromarray((_RAMP / 65535).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", _FILES)
def test_training_and_the_api_see_equal_pixels(name, tmp_path):
  data = _FILES[name]
  trained = decode.prepare(data, size=32, crop="stretch", flip=False, max_pixels=_MAX, rng=None)
  path = tmp_path / "file"
  path.write_bytes(data)
  for given in (Image.open(io.BytesIO(data)), path, str(path)):
    pixels = user_images.as_array(given)
    np.testing.assert_array_equal(user_images.stretched(pixels, 32), trained)
  np.testing.assert_array_equal(pixels, decode.pixels(data, _MAX))
  assert len(np.unique(pixels)) > 1, "a constant image tells nothing"


@pytest.mark.parametrize("name", ["I;16", "I;16B", "I", "F"])
def test_deep_grey_is_scaled_to_8_bits(name):
  pixels = decode.pixels(_FILES[name], _MAX)[..., 0]
  assert np.abs(pixels - _RAMP / 257).max() <= 0.51


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_images_in_memory_are_scaled_too(mode):
  order = ">u2" if mode == "I;16B" else "<u2"
  image = Image.frombytes(mode, (7, 9), _RAMP.astype(order).tobytes())
  assert np.abs(user_images.as_array(image)[..., 0] - _RAMP / 257).max() <= 0.51


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "CMYK", "RGBX", "RGBa"])
def test_colour_spaces_in_memory_become_rgb(mode):
  image = _image().convert("RGBA").convert(mode) if mode == "RGBa" else _image().convert(mode)
  assert np.abs(user_images.as_array(image).astype(int) - _RGB).max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_the_colours_below_transparent_pixels_are_used(mode):
  opaque = _image().convert("L" if mode == "LA" else "RGB").convert("RGB")
  np.testing.assert_array_equal(user_images.as_array(_half_clear(mode)), np.asarray(opaque))


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_colours_multiplied_with_alpha_are_divided_by_it(mode):
  image = _half_clear("LA").convert("La") if mode == "La" else _half_clear(mode)
  pixels = user_images.as_array(image)
  np.testing.assert_array_equal(pixels[:, 3:], np.asarray(_half_clear("LA" if "L" in mode else "RGB")
                                                          .convert("RGB"))[:, 3:])


def test_twelve_bits_of_a_tiff_are_scaled_by_their_own_range():
  image = Image.fromarray(_RAMP.astype(np.uint16) // 16)
  image.tag_v2 = {258: (12,)}
  assert np.abs(user_images.as_array(image)[..., 0] - _RAMP / 257).max() <= 1
  image.tag_v2 = {258: (16,), 262: 0}
  assert user_images.as_array(image)[0, 0, 0] == 255, "white is zero"


@pytest.mark.parametrize(("values", "message"), [
    (np.full((4, 4), 70_000, np.int32), r"integer values from 70000 to 70000: their range is unknown"),
    (np.full((4, 4), -1, np.int32), "their range is unknown"),
    (np.full((4, 4), 3, np.float32), r"float values from 3 to 3.*scale them to \[0, 1\]"),
    (np.full((4, 4), np.nan, np.float32), "their range is unknown"),
])
def test_values_of_unknown_range_are_refused_alike(values, message):
  image = Image.fromarray(values)
  with pytest.raises(decode.BadImageError, match=message):
    decode.pixels(_file(image, "TIFF"), _MAX)
  with pytest.raises(ValueError, match=f"image: .*{message}"):
    user_images.as_array(image)


@pytest.mark.parametrize(("image", "message"), [
    (Image.new("LAB", (4, 4)), "LAB are not read"), (Image.new("RGB", (0, 5)), "0×5 pixels"),
    (Image.new("1", (14_000, 14_000)), "14000×14000 pixels exceed")])
def test_other_images_are_refused_in_words(image, message):
  with pytest.raises(ValueError, match=message):
    user_images.as_array(image)


@pytest.mark.parametrize(("name", "message"), [
    ("RGBA", "transparency is not applied"), ("P transparent", "transparency is not applied"),
    ("EXIF", "EXIF orientation 6 is not applied"), ("profile", "colour profile is not applied"),
    ("GIF", "the first is used"), ("I", "used as 16 bits"), ("I dark", "used as 8 bits"),
    ("F", "used as 0 … 1")])
def test_what_is_guessed_or_not_used_is_noted(name, message):
  notes = []
  decode.pixels(_FILES[name], _MAX, notes.append)
  assert [note for note in notes if message in note], notes


@pytest.mark.parametrize("name", ["1", "L", "LA", "P", "RGB", "CMYK Adobe", "YCbCr", "I;16"])
def test_nothing_is_noted_about_usual_images(name):
  notes = []
  data = _file(_image().convert("LA"), "PNG") if name == "LA" else _FILES[name]
  decode.pixels(data, _MAX, notes.append)
  assert not notes


def test_damaged_exif_data_leaves_the_pixels_usable():
  notes = []
  data = _file(_image(), "JPEG", exif=b"Exif\0\0MM\0*" + struct.pack(">I", 2**31))
  np.testing.assert_array_equal(decode.pixels(data, _MAX, notes.append),
                                decode.pixels(_FILES["YCbCr"], _MAX))


def test_the_log_names_a_users_image_and_counts_those_of_training(caplog):
  user_images.as_array(_half_clear("RGBA"), "image 7")
  assert "image 7: transparency" in caplog.text
  counted = rgb.count.__self__
  before = counted.counts[_TRANSPARENT]
  for _ in range(25):
    decode.prepare(_FILES["RGBA"], size=8, crop="stretch", flip=False, max_pixels=_MAX, rng=None)
  assert counted.counts[_TRANSPARENT] == before + 25
  assert len([r for r in caplog.records if "transparency" in r.message]) <= 4
