"""Resizes equal PyTorch's at every size in use; ranges invert; padding comes off again."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import parity
from unilip_jax.ops import image as image_ops

_MODES = {
    "half-pixel centres": dict(align_corners=False, antialias=False),
    "aligned corners": dict(align_corners=True, antialias=False),
    "antialias": dict(align_corners=False, antialias=True),
}


def _image(height, width, channels=3):
  return np.random.default_rng(0).random((2, height, width, channels)).astype(np.float32)


def _torch_resize(x, size, **options):
  planes = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
  return planes, torch.nn.functional.interpolate(planes, size=size, **options)


@pytest.mark.parametrize("mode", list(_MODES))
@pytest.mark.parametrize(("source", "target"), [
    ((128, 128), (112, 112)),  # the decoder's 32 to 28 pixels a token
    ((320, 320), (280, 280)),  # the same in the padded 256-px protocol
    ((56, 56), (224, 224)), ((300, 260), (224, 224)),  # ConvNeXt's input
    ((5, 7), (11, 3)), ((4, 6), (1, 1)), ((9, 9), (9, 9))])
def test_bilinear_equals_pytorch(mode, source, target):
  options, x = _MODES[mode], _image(*source)
  result = jax.jit(lambda x: image_ops.resize_bilinear(x, *target, **options))(x)
  _, expected = _torch_resize(x, target, mode="bilinear", **options)
  parity.assert_parity("bilinear resize", f"torch interpolate ({mode})", np.moveaxis(result, -1, 1),
                       expected.detach().numpy())


@pytest.mark.parametrize(("source", "target"), [
    ((8, 8), (16, 16)), ((32, 32), (16, 16)), ((32, 32), (20, 36)), ((5, 7), (11, 3))])
def test_bicubic_equals_pytorch(source, target):
  x = _image(*source, channels=8)
  result = jax.jit(lambda x: image_ops.resize_bicubic(x, *target))(x)
  _, expected = _torch_resize(x, target, mode="bicubic", align_corners=False)
  parity.assert_parity("bicubic resize", "torch interpolate (a = -0.75)", np.moveaxis(result, -1, 1),
                       expected.detach().numpy())


@pytest.mark.parametrize("mode", list(_MODES))
def test_gradient_of_a_resize_equals_pytorchs(mode):
  options, x = _MODES[mode], _image(16, 20)
  weight = _image(14, 30)
  planes, expected = _torch_resize(x, (14, 30), mode="bilinear", **options)
  (expected * torch.tensor(np.moveaxis(weight, -1, 1).copy())).sum().backward()
  result = jax.grad(
      lambda x: (image_ops.resize_bilinear(x, 14, 30, **options) * weight).sum())(x)
  parity.assert_parity("bilinear resize, gradient", f"torch interpolate ({mode})",
                       np.moveaxis(result, -1, 1), planes.grad.numpy())


def test_resize_works_in_float32_and_keeps_a_constant():
  x = jnp.full((1, 128, 128, 3), 0.3, jnp.bfloat16)
  y = image_ops.resize_bilinear(x, 112, 112)
  chex.assert_type(y, jnp.float32)
  np.testing.assert_allclose(y, float(x[0, 0, 0, 0]), rtol=1e-6)


def test_antialias_with_aligned_corners_is_refused():
  with pytest.raises(ValueError, match="exclude each other"):
    image_ops.resize_bilinear(jnp.zeros((1, 4, 4, 3)), 2, 2, align_corners=True, antialias=True)


def test_ranges_invert_and_every_pixel_value_survives():
  pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
  unit = image_ops.unit_from_pixels(pixels)
  assert (float(unit.min()), float(unit.max())) == (0.0, 1.0)
  np.testing.assert_array_equal(image_ops.pixels_from_unit(unit), pixels)
  signed = image_ops.signed_from_unit(unit)
  assert (float(signed.min()), float(signed.max())) == (-1.0, 1.0)
  np.testing.assert_allclose(image_ops.unit_from_signed(signed), unit, atol=1e-7)
  normal = image_ops.imagenet_from_unit(unit)
  back = normal * np.float32(image_ops.IMAGENET_STD)[None, None] + np.float32(
      image_ops.IMAGENET_MEAN)[None, None]
  np.testing.assert_allclose(back, unit, atol=1e-6)


def test_ranges_change_in_float32():
  half = jnp.full((2, 2, 3), 0.3, jnp.bfloat16)
  for change in (image_ops.signed_from_unit, image_ops.unit_from_signed,
                 image_ops.imagenet_from_unit, image_ops.round_to_8bit):
    chex.assert_type(change(half), jnp.float32)


def test_reconstruction_range_is_unclamped_and_8_bits_are_clamped():
  signed = jnp.asarray([-1.5, -1.0, 0.0, 0.1, 1.0, 1.2])
  unit = image_ops.unit_from_signed(signed)
  assert float(unit.min()) < 0 < 1 < float(unit.max())
  rounded = np.asarray(image_ops.round_to_8bit(unit))
  np.testing.assert_array_equal(rounded, np.round(rounded * 255) / np.float32(255))
  assert (rounded.min(), rounded.max()) == (0.0, 1.0)
  np.testing.assert_array_equal(
      np.round(rounded * 255).astype(np.uint8), image_ops.pixels_from_unit(unit))


@pytest.mark.parametrize(("height", "width"), [(256, 256), (100, 150), (56, 56)])
def test_padding_equals_pytorchs_and_comes_off(height, width):
  x = _image(height, width)
  padded, size = image_ops.pad_to_multiple(x, 28)
  assert padded.shape[1] % 28 == padded.shape[2] % 28 == 0
  more = (0, -width % 28, 0, -height % 28)
  expected = torch.nn.functional.pad(torch.tensor(np.moveaxis(x, -1, 1).copy()), more, "reflect")
  np.testing.assert_array_equal(np.moveaxis(np.asarray(padded), -1, 1), expected.numpy())
  np.testing.assert_array_equal(image_ops.unpad(padded, size), x)


def test_images_too_small_to_reflect_are_refused():
  with pytest.raises(ValueError, match=r"10×40.*multiple of 28"):
    image_ops.pad_to_multiple(jnp.zeros((1, 10, 40, 3)), 28)
