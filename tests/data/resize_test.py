"""Resized images are those of PIL bit for bit, for every size and part, compiled or not."""

import platform
import shutil

import numpy as np
from PIL import Image
import pytest

from unilip_jax.data import resize


def _by_pil(pixels, size, corner, cut, mirror):
  """Resizes rows, then columns, and crops the complete result."""
  image = Image.fromarray(pixels)
  if image.width != size[1]:
    image = image.resize((size[1], image.height), Image.Resampling.BICUBIC)
  if image.height != size[0]:
    image = image.resize(size[::-1], Image.Resampling.BICUBIC)
  image = np.asarray(image)[corner[0]:corner[0] + cut[0], corner[1]:corner[1] + cut[1]]
  return image[:, ::-1] if mirror else image


def _case(rng, longest):
  """Returns random arguments of `part`; values of 0 and 255 alone go beyond both ends of the range."""
  shape, size = ([int(longest ** x) for x in rng.random(2)] for _ in range(2))
  if rng.random() < 0.2:
    axis = rng.integers(2)
    size[axis] = shape[axis]
  pixels = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
  if rng.random() < 0.5:
    pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
  cut = tuple(int(rng.integers(1, s + 1)) for s in size)
  corner = tuple(int(rng.integers(s - c + 1)) for s, c in zip(size, cut))
  return pixels, tuple(size), corner, cut, bool(rng.integers(2))


def _compare(seed, count, longest):
  rng = np.random.default_rng(seed)
  for _ in range(count):
    case = _case(rng, longest)
    np.testing.assert_array_equal(
        resize.part(*case), _by_pil(*case), err_msg=f"{case[0].shape} to {case[1:]}")


def _compare_usual_sizes():
  rng = np.random.default_rng(0)
  for shape, size, cut in (
      ((384, 512), (224, 298), (224, 224)), ((512, 384), (298, 224), (224, 224)),
      ((300, 301), (448, 449), (448, 448)), ((64, 64), (64, 64), (64, 64)),
      ((130, 1000), (224, 1723), (224, 224)), ((3, 700), (224, 224), (224, 224)),
      ((1024, 1024), (448, 448), (448, 448)), ((97, 33), (659, 224), (224, 224))):
    pixels = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    spare = size[0] - cut[0], size[1] - cut[1]
    for corner in {(0, 0), spare, (spare[0] // 3, spare[1] // 2)}:
      for mirror in (False, True):
        case = pixels, size, corner, cut, mirror
        np.testing.assert_array_equal(resize.part(*case), _by_pil(*case), err_msg=f"{shape} to {case[1:]}")


@pytest.fixture
def uncompiled(monkeypatch, tmp_path, caplog):
  """No compiler and an empty cache."""
  monkeypatch.setenv("CC", "no-such-compiler")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  resize._library.cache_clear()
  yield caplog
  resize._library.cache_clear()


def test_parts_of_random_sizes_are_pils_bit_for_bit():
  _compare(0, 100, 250)
  _compare_usual_sizes()


@pytest.mark.thorough
def test_parts_of_ten_thousand_sizes_are_pils_bit_for_bit():
  _compare(1, 10_000, 1200)


def test_pil_takes_over_without_a_compiler_and_the_log_names_the_remedy(uncompiled):
  _compare(2, 40, 200)
  _compare_usual_sizes()
  if platform.machine() in ("x86_64", "AMD64"):
    assert resize._library() is None
    assert "Install a C compiler" in uncompiled.text


def test_the_compiled_code_is_used_where_there_is_a_compiler():
  if platform.machine() not in ("x86_64", "AMD64") or shutil.which("cc") is None:
    pytest.skip("needs x86-64 and a C compiler")
  assert resize._library() is not None


def test_a_compilers_error_is_in_the_log(uncompiled, monkeypatch):
  monkeypatch.setenv("CC", "false")
  assert resize._library() is None
  assert "resize.c cannot be compiled" in uncompiled.text or platform.machine() not in ("x86_64", "AMD64")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_compiled_code_that_others_may_have_written_is_made_again(monkeypatch, tmp_path, caplog):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  file = resize._compiled()
  made = file.read_bytes()
  file.write_bytes(b"planted")
  assert resize._compiled().read_bytes() == b"planted", "its owner's own change is taken"
  file.chmod(0o722)
  assert resize._compiled().read_bytes() == made
  assert f"{file} belongs to somebody else" in caplog.text


def test_views_and_absurdly_long_images_work():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
  view = pixels[::-2, 5:45]
  case = (20, 20), (0, 0), (20, 20), False
  np.testing.assert_array_equal(resize.part(view, *case), resize.part(view.copy(), *case))
  line = rng.integers(0, 256, (1, 70_000, 3)).astype(np.uint8)
  np.testing.assert_array_equal(resize.part(line, *case), _by_pil(line, *case))


@pytest.mark.parametrize(("pixels", "corner", "message"), [
    (np.zeros((4, 4), np.uint8), (0, 0), "uint8"), (np.zeros((4, 4, 3), np.float32), (0, 0), "float32"),
    (np.zeros((0, 4, 3), np.uint8), (0, 0), "uint8"), (np.zeros((4, 4, 3), np.uint8), (0, 3), "not inside"),
    (np.zeros((4, 4, 3), np.uint8), (-1, 0), "not inside")])
def test_other_pixels_and_parts_outside_are_refused(pixels, corner, message):
  with pytest.raises(ValueError, match=message):
    resize.part(pixels, (8, 8), corner, (6, 6))
