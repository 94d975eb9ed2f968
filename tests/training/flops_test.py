"""FLOP counts against counts made by hand."""

import types

import jax
import jax.numpy as jnp
import pytest

from unilip_jax.ops import resample
from unilip_jax.training import flops


def _spec(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_dense_counts_two_per_multiply_add():
  assert flops.count(lambda x, w: x @ w, _spec(5, 7), _spec(7, 11)) == 2 * 5 * 7 * 11


def test_batched_product_counts_every_batch_entry():
  fn = lambda a, b: jnp.einsum("BQH,BSH->BQS", a, b)
  assert flops.count(fn, _spec(3, 4, 5), _spec(3, 6, 5)) == 2 * 3 * 4 * 6 * 5


def _conv(x, w, stride=1, groups=1):
  return jax.lax.conv_general_dilated(
      x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups)


def test_convolution():
  assert flops.count(_conv, _spec(2, 8, 8, 3), _spec(3, 3, 3, 16)) == 2 * (2 * 8 * 8 * 16) * 27


def test_depthwise_convolution_counts_one_input_channel():
  count = flops.count(lambda x, w: _conv(x, w, groups=16), _spec(2, 8, 8, 16), _spec(5, 5, 1, 16))
  assert count == 2 * (2 * 8 * 8 * 16) * 25


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_convolution_gradient_is_twice_its_forward(stride, groups):
  x, w = _spec(2, 8, 8, 16), _spec(3, 3, 16 // groups, 32)
  conv = lambda x, w: _conv(x, w, stride, groups)
  forward = flops.count(conv, x, w)
  _, backward_of = jax.eval_shape(lambda x, w: (conv(x, w), x), x, w)
  assert backward_of.shape == x.shape

  def both(x, w):
    out, vjp = jax.vjp(conv, x, w)
    return vjp(out)

  assert flops.count(both, x, w) == 3 * forward


def test_dense_gradient_is_three_forwards():
  loss = lambda x, w: jnp.sum((x @ w) ** 2)
  grad = jax.grad(loss, argnums=(0, 1))
  assert flops.count(grad, _spec(5, 7), _spec(7, 11)) == 3 * 2 * 5 * 7 * 11


def _stack(x, ws, remat=False):
  body = lambda x, w: (jnp.tanh(x @ w), None)
  return jax.lax.scan(jax.checkpoint(body) if remat else body, x, ws)[0].sum()


def test_scan_counts_every_iteration_and_its_gradient():
  x, ws = _spec(4, 8), _spec(6, 8, 8)
  assert flops.count(_stack, x, ws) == 6 * 2 * 4 * 8 * 8
  assert flops.count(jax.grad(_stack, argnums=(0, 1)), x, ws) == 3 * 6 * 2 * 4 * 8 * 8


def test_compiler_counts_the_scanned_body_fewer_times_than_we_do():
  x, ws = _spec(4, 8), _spec(6, 8, 8)
  cost = jax.jit(_stack).lower(x, ws).compile().cost_analysis()
  cost = cost[0] if isinstance(cost, list) else cost
  assert cost["flops"] < flops.count(_stack, x, ws)  # why this file exists


def test_remat_counts_more_so_the_unrematerialised_function_must_be_given():
  x, ws = _spec(4, 8), _spec(6, 8, 8)
  plain = flops.count(jax.grad(_stack, argnums=1), x, ws)
  assert flops.count(jax.grad(lambda x, ws: _stack(x, ws, True), argnums=1), x, ws) > plain


def test_cond_counts_its_dearest_branch():
  fn = lambda p, x, w: jax.lax.cond(p, lambda: x @ w @ w, lambda: x @ w)
  count = flops.count(fn, jax.ShapeDtypeStruct((), bool), _spec(4, 8), _spec(8, 8))
  assert count == 2 * 2 * 4 * 8 * 8


def test_nested_jit_and_custom_gradients_are_entered():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
  fn = jax.jit(lambda x, w: jax.jit(product)(x, w).sum())
  one = 2 * 4 * 8 * 8
  assert flops.count(fn, _spec(4, 8), _spec(8, 8)) == one
  assert flops.count(jax.grad(fn, argnums=(0, 1)), _spec(4, 8), _spec(8, 8)) == 3 * one


def test_products_that_only_move_values_are_no_work_of_the_model():
  def loss(x, w):
    return jax.checkpoint(lambda x: resample.shuffle_by_convolution(x @ w, 4))(x).sum()

  work = 3 * 2 * 4 * 5 * 8 * 8
  both = jax.grad(loss, argnums=(0, 1))
  assert flops.count(both, _spec(1, 4, 5, 8), _spec(8, 8)) == work
  jaxpr = jax.make_jaxpr(both)(_spec(1, 4, 5, 8), _spec(8, 8))
  assert flops.count_jaxpr(jaxpr) == work + 2 * 2 * 8 * 10 * 4 * 8  # forward and backward


def test_while_around_products_is_refused():
  def fn(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 10, lambda x: x @ w, x)

  with pytest.raises(ValueError, match="trip count"):
    flops.count(fn, _spec(4, 8), _spec(8, 8))
  loop = lambda x: jax.lax.while_loop(lambda x: x.sum() < 10, lambda x: x + 1, x)
  assert flops.count(loop, _spec(4)) == 0


@pytest.mark.parametrize(("kind", "expected"), [
    ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("TPU v4", 275e12),
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
    ("Some future chip", None)])
def test_peak_by_device_kind(kind, expected):
  device = types.SimpleNamespace(device_kind=kind, platform="tpu")
  assert flops.peak([device])[0] == expected
  assert flops.peak([device] * 4)[0] == (expected and 4 * expected)


def test_cpu_peak_is_measured_and_virtual_devices_share_it():
  one, how = flops.peak(jax.devices()[:1])
  assert one > 1e8
  assert "measured" in how
  assert flops.peak(jax.devices())[0] == one
