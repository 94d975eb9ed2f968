"""Every kind of image becomes correct RGB or is reported as broken; resizes equal the official ones."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from tests import parity
from unilip_jax.data import decode

_MAX = 10_000_000


def _bytes(image, fmt="PNG", **kwargs):
  buffer = io.BytesIO()
  image.save(buffer, fmt, **kwargs)
  return buffer.getvalue()


def _decoded(data):
  return np.asarray(decode.decode(data, _MAX))


def test_cmyk_palette_grey_and_alpha_become_rgb():
  rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8))
  for data in (_bytes(rgb.convert("CMYK"), "JPEG"), _bytes(rgb.convert("P")),
               _bytes(rgb.convert("L")), _bytes(rgb.convert("LA")), _bytes(rgb.convert("1"))):
    assert _decoded(data).shape == (9, 7, 3)
  alpha = rgb.copy()
  alpha.putalpha(Image.new("L", rgb.size, 0))
  np.testing.assert_array_equal(_decoded(_bytes(alpha)), np.asarray(rgb))  # alpha is dropped


def test_adobe_cmyk_is_inverted_as_pil_does():
  rgb = np.zeros((16, 16, 3), np.uint8)
  rgb[:, :8] = (255, 255, 255)
  rgb[:, 8:] = (200, 30, 60)
  data = _bytes(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=100)
  assert b"Adobe" in data, "the marker of inverted values"
  out = _decoded(data)
  np.testing.assert_array_equal(out, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
  assert np.abs(out.astype(int) - rgb).max() <= 4, "JPEG's own error, in levels"


def test_exif_orientation_is_not_applied():
  rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by 90°
  np.testing.assert_array_equal(
      _decoded(_bytes(rgb, "JPEG", exif=exif.tobytes())), _decoded(_bytes(rgb, "JPEG")))


def test_16_bit_grey_is_scaled_not_clipped():
  values = np.array([[0, 257, 65535, 32896]], np.uint16)
  out = _decoded(_bytes(Image.fromarray(values)))
  np.testing.assert_array_equal(out[0, :, 0], [0, 1, 255, 128])


def test_the_first_frame_of_an_animation_counts():
  frames = [Image.new("RGB", (5, 5), c) for c in ("red", "blue")]
  data = _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(_decoded(data)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_truncated_images_are_named_as_broken(fmt, keep):
  rng = np.random.default_rng(0)
  data = _bytes(Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)), fmt)
  cut = int(len(data) * keep) if keep < 1 else keep
  with pytest.raises(decode.BadImageError):
    decode.decode(data[:cut], _MAX)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_sizes_are_refused_before_decoding():
  data = _bytes(Image.new("1", (12_000, 12_000)))
  with pytest.raises(decode.BadImageError, match="12000×12000 pixels exceed max_pixels=10000000"):
    decode.decode(data, _MAX)


def test_headers_above_pils_own_limit_are_refused_too():
  data = bytearray(_bytes(Image.new("RGB", (4, 4))))
  data[16:24] = struct.pack(">II", 30_000, 30_000)  # IHDR: width, height
  data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  with pytest.raises(decode.BadImageError, match="DecompressionBombError"):
    decode.decode(bytes(data), 10**12)


def test_no_bytes_are_named_as_such():
  with pytest.raises(decode.BadImageError, match=r"^0 bytes$"):
    decode.decode(b"", _MAX)


@pytest.mark.parametrize("size", [(150, 100), (200, 300)])
def test_stretch_equals_the_official_image_processor(golden, size):
  run = np.load(golden / "image_processor.npz")
  name = f"{size[1]}x{size[0]}"
  image = decode.fit(Image.fromarray(run[f"in_{name}"]), 112, "stretch", None)
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  recorded = np.rint((np.moveaxis(run[f"out_{name}"][0], 0, -1) * std + mean) * 255)
  levels = np.abs(parity.like(image, recorded) - recorded)
  assert levels.max() <= 1, "levels of 255"  # releases of PIL round ties differently
  assert (levels > 0).mean() < 0.005


def test_crops_keep_aspect_and_stay_inside():
  image = Image.fromarray(np.arange(60 * 90 * 3, dtype=np.uint32).reshape(60, 90, 3).astype(np.uint8))
  centre = decode.fit(image, 60, "center", None)
  np.testing.assert_array_equal(np.asarray(centre), np.asarray(image)[:, 15:75])
  for seed in range(20):
    crop = np.asarray(decode.fit(image, 60, "random", np.random.default_rng(seed)))
    assert crop.shape == (60, 60, 3)
  with pytest.raises(ValueError, match="unknown crop"):
    decode.fit(image, 60, "corner", None)


@pytest.mark.parametrize("shape", [
    (384, 512), (512, 384), (300, 301), (224, 400), (400, 224), (60, 95), (95, 60), (64, 64),
    (1000, 130), (130, 1000), (3, 700), (97, 33)])
def test_a_crop_equals_that_of_the_complete_resized_image(shape):
  """The shortcuts of the resize change no bit; 224 enlarges some of these and shrinks others."""
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (*shape, 3)).astype(np.uint8))
  for size, cut in ((64, (64, 64)), (224, (224, 224)), (224, (224, 100))):
    short = min(shape)
    width, height = int(size * shape[1] / short), int(size * shape[0] / short)
    full = image.resize((width, shape[0]), Image.Resampling.BICUBIC)
    full = np.asarray(full.resize((width, height), Image.Resampling.BICUBIC))
    spare_x, spare_y = width - cut[0], height - cut[1]
    corners = {(0, 0), (spare_x, spare_y), (spare_x // 2, spare_y // 2), (spare_x // 3, spare_y // 3)}
    for left, top in corners:
      part = decode._resize_and_crop(image, width, height, left, top, cut)
      np.testing.assert_array_equal(np.asarray(part), full[top:top + cut[1], left:left + cut[0]])


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (84, 140), (140, 84), (30, 300), (84, 84)])
def test_rectangles_are_covered_and_cropped_or_stretched(shape):
  """A column of one colour stays a column: what is cut away lies on both sides alike."""
  ramp = np.broadcast_to(np.linspace(0, 255, shape[1]).astype(np.uint8)[None, :, None], (*shape, 3))
  for size in ((84, 140), (140, 84)):
    covered = max(size[0] / shape[0], size[1] / shape[1])
    for crop, share in (("center", size[1] / (covered * shape[1])), ("stretch", 1.0)):
      fitted = np.asarray(decode.fit(Image.fromarray(ramp), size, crop, None)).astype(int)
      assert fitted.shape == (*size, 3)
      middle = fitted[size[0] // 2, :, 0]
      assert abs((middle[-1] - middle[0]) / 255 - share) < 0.06
      assert abs(middle[0] + middle[-1] - 255) < 9
    for seed in range(5):
      cut = decode.fit(Image.fromarray(ramp), size, "random", np.random.default_rng(seed))
      assert cut.size == size[::-1]


def test_crop_and_flip_depend_on_the_generator_alone():
  data = _bytes(Image.fromarray(
      np.random.default_rng(0).integers(0, 256, (80, 64, 3)).astype(np.uint8)))
  settings = dict(size=32, crop="random", flip=True, max_pixels=_MAX)
  outs = [decode.prepare(data, rng=np.random.default_rng(s), **settings) for s in (0, 0, *range(1, 12))]
  np.testing.assert_array_equal(outs[0], outs[1])
  assert len({o.tobytes() for o in outs}) > 5
