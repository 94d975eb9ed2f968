"""Every kind of image becomes correct RGB or is reported as broken; resizes equal the official ones."""

from concurrent import futures
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
  return decode.pixels(data, _MAX)


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
    decode.pixels(data[:cut], _MAX)


def _photograph(width, height, seed=0):
  """Smooth shades, edges and some noise."""
  rng = np.random.default_rng(seed)
  shades = Image.fromarray(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8))
  image = np.asarray(shades.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
  for _ in range(12):
    y, x = rng.integers(height), rng.integers(width)
    image[y:y + height // 4, x:x + width // 4] += rng.integers(-60, 60, 3)
  return Image.fromarray(np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8))


def _by_pil(data):
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("options", [
    {}, {"quality": 30}, {"quality": 100, "subsampling": 0}, {"subsampling": 1}, {"subsampling": 2},
    {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 3}, {"keep_rgb": True},
    {"quality": 5, "progressive": True, "subsampling": 1}], ids=str)
def test_jpegs_have_the_pixels_of_pil(options):
  for size in ((64, 48), (1, 1), (17, 33), (8, 3), (301, 199)):
    for image in (_photograph(*size), _photograph(*size).convert("L"), _photograph(*size).convert("CMYK")):
      data = _bytes(image, "JPEG", **options)
      np.testing.assert_array_equal(decode.pixels(data, _MAX), _by_pil(data))


def test_damaged_jpegs_are_refused_or_have_the_pixels_of_pil():
  rng, intact = np.random.default_rng(0), _bytes(_photograph(97, 71), "JPEG")
  usable = 0
  for _ in range(200):
    data = bytearray(intact)
    for _ in range(rng.integers(1, 4)):
      data[rng.integers(2, len(data))] = rng.integers(256)
    data = bytes(data)
    try:
      expected = _by_pil(data)
    except Exception:
      expected = None
    try:
      decoded = decode.pixels(data, _MAX, lambda what: None)
    except decode.BadImageError:
      decoded = None
    assert (decoded is None) == (expected is None)
    if decoded is not None:
      np.testing.assert_array_equal(decoded, expected)
      usable += 1
  assert 20 < usable < 180, "both outcomes are tried"


def test_a_jpeg_whose_headers_disagree_stays_in_the_memory_of_the_first():
  data = _bytes(_photograph(64, 48), "JPEG")
  frame = data.index(b"\xff\xc0")
  large = bytearray(data[frame:frame + 19])
  large[5:9] = struct.pack(">HH", 60_000, 60_000)
  mixed = data[:frame] + data[frame:frame + 19] + bytes(large) + data[frame + 19:]
  with pytest.raises(decode.BadImageError):
    decode.pixels(mixed, _MAX)


def _prepared(data, scaled, size=56, crop="center", seed=None):
  rng = None if seed is None else np.random.default_rng(seed)
  return decode.prepare(data, size=size, crop=crop, flip=rng is not None, max_pixels=_MAX, rng=rng,
                        scaled=scaled)


def _decibels(a, b):
  """Returns the peak signal-to-noise ratio."""
  return 10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean())


@pytest.mark.parametrize("crop", ["center", "random", "stretch"])
@pytest.mark.parametrize("shape", [(112, 112), (231, 167), (480, 640), (449, 113)])
def test_scaled_decoding_shows_the_same_part_with_a_small_loss(shape, crop):
  data = _bytes(_photograph(*shape), "JPEG", quality=90)
  exact, scaled = (_prepared(data, way, crop=crop, seed=3) for way in (False, True))
  assert not np.array_equal(exact, scaled)
  assert _decibels(exact, scaled) > 32  # photographs: benchmarks/scaled_decoding.py


def test_scaled_decoding_leaves_other_images_exact():
  image = _photograph(109, 109)  # less than twice the size
  large = _photograph(240, 240)
  for data in (_bytes(image, "JPEG"), _bytes(large, "PNG"), _bytes(large.convert("L"), "JPEG")):
    np.testing.assert_array_equal(_prepared(data, True), _prepared(data, False))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_sizes_are_refused_before_decoding():
  data = _bytes(Image.new("1", (12_000, 12_000)))
  with pytest.raises(decode.BadImageError, match="12000×12000 pixels exceed max_pixels=10000000"):
    decode.pixels(data, _MAX)


def test_headers_above_pils_own_limit_are_refused_too():
  data = bytearray(_bytes(Image.new("RGB", (4, 4))))
  data[16:24] = struct.pack(">II", 30_000, 30_000)  # IHDR: width, height
  data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  with pytest.raises(decode.BadImageError, match="DecompressionBombError"):
    decode.pixels(bytes(data), 10**12)


def test_no_bytes_are_named_as_such():
  with pytest.raises(decode.BadImageError, match=r"^0 bytes$"):
    decode.pixels(b"", _MAX)


@pytest.mark.parametrize("size", [(150, 100), (200, 300)])
def test_stretch_equals_the_official_image_processor(golden, size):
  run = np.load(golden / "image_processor.npz")
  name = f"{size[1]}x{size[0]}"
  image = decode.fit(run[f"in_{name}"], 112, "stretch")
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  recorded = np.rint((np.moveaxis(run[f"out_{name}"][0], 0, -1) * std + mean) * 255)
  levels = np.abs(parity.like(image, recorded) - recorded)
  assert levels.max() <= 1, "levels of 255"  # releases of PIL round ties differently
  assert (levels > 0).mean() < 0.005


def test_crops_keep_aspect_and_stay_inside():
  image = np.arange(60 * 90 * 3, dtype=np.uint32).reshape(60, 90, 3).astype(np.uint8)
  np.testing.assert_array_equal(decode.fit(image, 60, "center"), image[:, 15:75])
  for seed in range(20):
    assert decode.fit(image, 60, "random", np.random.default_rng(seed)).shape == (60, 60, 3)
  with pytest.raises(ValueError, match="unknown crop"):
    decode.fit(image, 60, "corner")


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (84, 140), (140, 84), (30, 300), (84, 84)])
def test_rectangles_are_covered_and_cropped_or_stretched(shape):
  """A column of one colour stays a column: what is cut away lies on both sides alike."""
  ramp = np.broadcast_to(np.linspace(0, 255, shape[1]).astype(np.uint8)[None, :, None], (*shape, 3))
  for size in ((84, 140), (140, 84)):
    covered = max(size[0] / shape[0], size[1] / shape[1])
    for crop, share in (("center", size[1] / (covered * shape[1])), ("stretch", 1.0)):
      fitted = decode.fit(ramp, size, crop).astype(int)
      assert fitted.shape == (*size, 3)
      middle = fitted[size[0] // 2, :, 0]
      assert abs((middle[-1] - middle[0]) / 255 - share) < 0.06
      assert abs(middle[0] + middle[-1] - 255) < 9
    for seed in range(5):
      assert decode.fit(ramp, size, "random", np.random.default_rng(seed)).shape == (*size, 3)


def test_threads_prepare_as_one_does():
  """Memory that is used again never reaches another image."""
  files = [_bytes(_photograph(60 + 7 * i, 90 - 3 * i, i), "JPEG") for i in range(8)]
  one = [_prepared(data, False, 40, "random", i) for i, data in enumerate(files)]
  with futures.ThreadPoolExecutor(4) as pool:
    for _ in range(4):
      several = pool.map(lambda i: _prepared(files[i], False, 40, "random", i), range(len(files)))
      for a, b in zip(one, several):
        np.testing.assert_array_equal(a, b)


def test_crop_and_flip_depend_on_the_generator_alone():
  data = _bytes(Image.fromarray(
      np.random.default_rng(0).integers(0, 256, (80, 64, 3)).astype(np.uint8)))
  settings = dict(size=32, crop="random", flip=True, max_pixels=_MAX)
  outs = [decode.prepare(data, rng=np.random.default_rng(s), **settings) for s in (0, 0, *range(1, 12))]
  np.testing.assert_array_equal(outs[0], outs[1])
  assert len({o.tobytes() for o in outs}) > 5
