"""Every way to double an image's sides is PyTorch's, forward and backward."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import parity
from unilip_jax.ops import backend, resample

_BOTH = [resample.conv_nearest_doubled, resample.conv_nearest_transposed]


def _image(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _channels_first(x):
  return torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)


def _channels_last(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.parametrize("grid", [(5, 6), (1, 3)])
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("function", _BOTH)
def test_convolution_of_the_doubled_image_equals_pytorch(function, side, grid):
  x, kernel = _image(2, *grid, 4), _image(side, side, 4, 7)
  tx, tk = _channels_first(x), torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)
  ty = torch.nn.functional.conv2d(
      torch.nn.functional.interpolate(tx, scale_factor=2, mode="nearest"), tk, padding=side // 2)
  (ty**2 / 2).sum().backward()
  y, gradients = jax.vjp(function, x, kernel)
  dx, dkernel = gradients(y)
  for result, reference in ((y, _channels_last(ty)), (dx, _channels_last(tx.grad)),
                     (dkernel, tk.grad.numpy().transpose(2, 3, 1, 0))):
    parity.assert_parity("convolution of the doubled image", "torch interpolate, conv2d", result, reference)


@pytest.mark.parametrize("function", _BOTH)
def test_convolution_keeps_bfloat16_with_a_kernel_of_float32(function):
  x, kernel = _image(2, 4, 4, 8), _image(3, 3, 8, 16)
  exact = resample.conv_nearest_doubled(x, kernel)
  low, gradients = jax.vjp(function, jnp.bfloat16(x), kernel)
  assert [low.dtype, *(g.dtype for g in gradients(low))] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
  assert parity.relative_error(low.astype(jnp.float32), exact) < 0.01


def test_the_transposed_form_multiplies_four_times_instead_of_nine():
  from unilip_jax.training import flops

  specs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 16), (3, 3, 16, 32))]

  def work(function):
    return flops.count(lambda x, k: (lambda y, vjp: vjp(y))(*jax.vjp(function, x, k)), *specs)

  doubled, transposed = (work(f) for f in _BOTH)
  assert transposed * 9 == doubled * 4


@pytest.mark.parametrize("features", [4, 8, 2])  # channels are repeated 2, 4 times, and once
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_shortcut_as_a_convolution_moves_the_same_values(features, dtype):
  x = jnp.asarray(_image(2, 3, 5, 8), dtype)
  wanted, back = jax.vjp(lambda x: resample.shuffle_by_transpose(x, features), x)
  y, gradient = jax.vjp(lambda x: resample.shuffle_by_convolution(x, features), x)
  chex.assert_type(y, dtype)
  np.testing.assert_array_equal(y.astype(np.float32), wanted.astype(np.float32))
  dy = jnp.asarray(_image(*y.shape), dtype)
  np.testing.assert_allclose(  # sums of up to four values
      *(g(dy)[0].astype(np.float32) for g in (gradient, back)), rtol=1e-6 if dtype == jnp.float32 else 0.02,
      atol=1e-6 if dtype == jnp.float32 else 0.02)


def test_pixel_shuffle_and_its_inverse_are_pytorchs():
  x = _image(2, 3, 5, 8)
  shuffled = resample.pixel_shuffle(x)
  np.testing.assert_array_equal(
      shuffled, _channels_last(torch.nn.functional.pixel_shuffle(_channels_first(x), 2)))
  np.testing.assert_array_equal(resample.pixel_unshuffle(shuffled), x)


def test_a_tpu_gets_the_forms_that_were_estimated_faster(monkeypatch):
  x, kernel = jnp.ones((1, 2, 2, 8)), jnp.ones((3, 3, 8, 4))
  program = lambda: str(jax.make_jaxpr(
      lambda x, k: resample.conv_nearest(x, k) + resample.shuffle_repeated(x, 4))(x, kernel))
  assert "lhs_dilation=(2, 2)" not in program()
  with backend.planning("tpu"):
    assert program().count("lhs_dilation=(2, 2)") == 2
