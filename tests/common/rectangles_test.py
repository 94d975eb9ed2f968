"""Sizes of aspect-ratio buckets use their budget of tokens, and other sizes are refused with near ones."""

import pytest

from unilip_jax.common import rectangles


def test_buckets_are_those_of_the_budget_that_no_other_covers():
  buckets = rectangles.aspect_buckets(448, 28)
  tokens = [(h // 28, w // 28) for h, w in buckets]
  wide = [(8, 32), (9, 28), (10, 25), (11, 23), (12, 21), (13, 19), (14, 18), (15, 17), (16, 16)]
  assert tokens == wide + [(w, h) for h, w in reversed(wide[:-1])]
  for h, w in tokens:
    assert h * w <= 256 < min((h + 1) * w, h * (w + 1))
  assert len(rectangles.aspect_buckets(448, 28, 2.0)) == 9
  assert rectangles.aspect_buckets(112, 28, 2.0) == ((84, 140), (112, 112), (140, 84))
  assert rectangles.aspect_buckets(448, 28, 1.0) == ((448, 448),)


def test_wide_and_tall_sizes_choose_mirrored_buckets():
  buckets = rectangles.aspect_buckets(448, 28)
  for size in ((300, 100), (1080, 1920), (500, 333), (99, 100), (4000, 10)):
    h, w = rectangles.nearest_bucket(size, 448, 28)
    assert rectangles.nearest_bucket(size[::-1], 448, 28) == (w, h)
    assert (h, w) in buckets
  assert rectangles.nearest_bucket((1080, 1920), 448, 28) == (336, 588)
  assert rectangles.nearest_bucket((7, 7), 448, 28) == (448, 448)


@pytest.mark.parametrize(("size", "message"), [
    ((336, 590), "nearest: 336x588, 336x616, 308x588"), ((29, 450), "nearest: 112x448, "),
    ((1000, 1000), "nearest: 896x896"), ((28, 140), "nearest: 28x112, 56x140"),
    ((0, 28), "give"), ((28.0, 28), "give"), ("448x448", "give"), ((448,), "give"), ((True, 28), "give"),
    ((10**9, 28), "nearest: ")])
def test_other_sizes_are_refused_with_the_nearest_ones(size, message):
  with pytest.raises(ValueError, match=message):
    rectangles.check("size", size, 448, 28)


@pytest.mark.parametrize("size", [(448, 448), (336, 588), [28, 28], (896, 896), (1792, 448)])
def test_multiples_of_a_token_up_to_the_largest_are_taken(size):
  assert rectangles.check("size", size, 448, 28) == tuple(size)


def test_a_size_is_parsed_from_height_and_width():
  assert rectangles.parse("--size", "336x588") == (336, 588)
  for text in ("336", "336×588", "x", "336x588x3", "-1x2", "3e2x5"):
    with pytest.raises(ValueError, match="HEIGHTxWIDTH"):
      rectangles.parse("--size", text)
