"""Every formulation of a convolution is PyTorch's convolution, forward and backward."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import parity
from unilip_jax.ops import backend, conv, cpu


def _inputs(shape, kernel_shape):
  rng = np.random.default_rng(0)
  return (rng.standard_normal(shape).astype(np.float32),
          rng.standard_normal(kernel_shape).astype(np.float32))


def _torch(x, kernel, **options):
  """(output, dx, dkernel) of Σ output²/2, NHWC."""
  tx = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
  tk = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)
  y = torch.nn.functional.conv2d(tx, tk, padding=kernel.shape[0] // 2, **options)
  (y**2 / 2).sum().backward()
  nhwc = lambda t: np.moveaxis(t.detach().numpy(), 1, -1)
  return nhwc(y), nhwc(tx.grad), tk.grad.numpy().transpose(2, 3, 1, 0)


def _jax(function, x, kernel):
  loss = lambda x, k: (lambda y: (jnp.square(y).sum() / 2, y))(function(x, k))
  (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)
  return y, *grads


@pytest.mark.parametrize("grid", [(4, 6), (4, 4), (1, 3), (1, 1)])  # a CPU writes small ones out
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("function", [conv.depthwise_grouped, cpu.depthwise])
def test_depthwise_formulations_equal_pytorch(function, side, grid):
  x, kernel = _inputs((2, *grid, 12), (side, side, 1, 12))
  for result, reference in zip(_jax(function, x, kernel), _torch(x, kernel, groups=12), strict=True):
    parity.assert_parity("depthwise convolution", "torch conv2d", result, reference)


@pytest.mark.parametrize("grid", [(4, 6), (4, 4)])
def test_forward_and_mixed_derivatives_of_a_cpus_depthwise_form_equal_those_of_the_plain_form(grid):
  (x, kernel), (dx, dkernel) = (_inputs((2, *grid, 6), (3, 3, 1, 6)) for _ in range(2))

  def derivatives(function):
    along = lambda x, k: jax.jvp(lambda x, k: jnp.square(function(x, k)), (x, k), (dx, dkernel))
    gradients = jax.grad(lambda x, k: jnp.sin(along(x, k)[1]).sum(), (0, 1))
    forward_over_reverse = jax.jvp(
        jax.grad(lambda x, k: jnp.sin(function(x, k)).sum(), (0, 1)), (x, kernel), (dx, dkernel))[1]
    batched = jax.vmap(function, (0, None))(x[:, None], kernel)
    return along(x, kernel), gradients(x, kernel), forward_over_reverse, batched

  plain, cpus = (jax.jit(lambda f=f: derivatives(f))() for f in (conv.depthwise_grouped, cpu.depthwise))
  chex.assert_trees_all_close(cpus, plain, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_dense_convolution_equals_pytorch(side, stride):
  x, kernel = _inputs((2, 7, 6, 4), (side, side, 4, 5))
  function = lambda x, k: conv.conv(x, k, stride=stride)
  for result, reference in zip(_jax(function, x, kernel), _torch(x, kernel, stride=stride), strict=True):
    parity.assert_parity("convolution", "torch conv2d", result, reference)


def test_only_a_cpu_gets_the_forms_of_cpus():
  x, kernel, grouped = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 5)), jnp.ones((3, 3, 1, 4))
  program = lambda: str(jax.make_jaxpr(lambda: (conv.conv(x, kernel), conv.depthwise(x, grouped)))())
  assert program().count("custom_vjp_call") == program().count("depthwise_convolution[") == 1
  with backend.planning("tpu"):
    assert program().count("custom_vjp_call") == program().count("depthwise_convolution[") == 0
    assert program().count("feature_group_count=4") == 1


def test_the_batch_may_be_the_third_axis_of_a_depthwise_convolution():
  x, kernel = _inputs((2, 4, 6, 12), (3, 3, 1, 12))
  function = lambda x, k: jnp.moveaxis(conv.depthwise(jnp.moveaxis(x, 0, 2), k, batch_axis=2), 2, 0)
  for result, reference in zip(_jax(function, x, kernel), _torch(x, kernel, groups=12), strict=True):
    parity.assert_parity("depthwise convolution", "torch conv2d", result, reference)


def test_depthwise_keeps_bfloat16():
  x, kernel = _inputs((1, 4, 4, 8), (3, 3, 1, 8))
  low = conv.depthwise(jnp.bfloat16(x), jnp.bfloat16(kernel))
  chex.assert_type(low, jnp.bfloat16)
  exact = conv.depthwise(x, kernel)
  assert parity.relative_error(low.astype(jnp.float32), exact) < 0.02


@pytest.mark.parametrize("batch", [6, 5])  # what the cache holds divides the batch, or does not
@pytest.mark.parametrize(("side", "features"), [(1, 7), (3, 12), (3, 2), (5, 6)])
def test_a_dense_convolution_by_matrix_multiplications_equals_pytorch(monkeypatch, batch, side, features):
  monkeypatch.setattr(cpu, "_CACHE_BYTES", 2 * 5 * 6 * side * (4 + features) * 4)  # two images
  x, kernel = _inputs((batch, 5, 6, 4), (side, side, 4, features))
  for result, reference in zip(_jax(cpu.conv, x, kernel), _torch(x, kernel), strict=True):
    parity.assert_parity("convolution by matrix multiplications", "torch conv2d", result, reference)


def test_a_dense_convolution_keeps_bfloat16():
  x, kernel = _inputs((4, 4, 4, 8), (3, 3, 8, 16))
  grads = jax.grad(lambda x, k: conv.conv(x, k).sum(), (0, 1))(jnp.bfloat16(x), jnp.bfloat16(kernel))
  chex.assert_type(grads, jnp.bfloat16)
