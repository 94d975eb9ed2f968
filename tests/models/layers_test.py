"""Shared layers equal PyTorch's; stacks equal their layers in turn; remat changes memory only."""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import parity
from unilip_jax.models import layers
from unilip_jax.ops import backend


def _x(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("lead", [(5,), (2, 3), (2, 3, 4)])
def test_dense_equals_pytorch_for_any_number_of_axes(lead):
  reference = torch.nn.Linear(6, 7)
  params = {"kernel": reference.weight.detach().numpy().T, "bias": reference.bias.detach().numpy()}
  x = _x(*lead, 6)
  result = layers.Dense(7, jnp.float32).apply({"params": params}, x)
  parity.assert_parity("Dense", "torch Linear", result, reference(torch.tensor(x)).detach().numpy())


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_parts_of_a_dense_layer_are_those_of_its_output(platform):
  x, kernel, bias, scale = _x(2, 3, 6), np.int8(9 * _x(6, 9)), _x(9), abs(_x(9))
  adapter = {"a": _x(6, 2), "b": _x(2, 9), "scale": _x(2)}
  dense = {"kernel": np.float32(kernel), "bias": bias}
  cases = [
      (dense, x @ kernel + bias),
      (dense | {"kernel": kernel, "kernel_scale": scale}, x @ (kernel * scale) + bias),
      (dense | {"lora": {"full": adapter}},
       x @ kernel + bias + x @ adapter["a"] * adapter["scale"] @ adapter["b"])]
  with backend.planning(platform):
    for params, expected in cases:
      y = layers.Dense(9, jnp.float32).apply({"params": params}, x)
      parts = layers.Dense(9, jnp.float32, parts=3).apply({"params": params}, x)
      np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
      np.testing.assert_allclose(jnp.concatenate(parts, axis=-1), y, rtol=1e-5, atol=1e-5)


def test_only_tpus_multiply_parts_by_themselves_and_keep_the_axes_of_rows():
  dense = lambda x: layers.Dense(9, jnp.float32, parts=3, use_bias=False).apply(
      {"params": {"kernel": _x(6, 9)}}, x)
  shapes = lambda: [e.outvars[0].aval.shape for e in jax.make_jaxpr(dense)(_x(2, 3, 6)).eqns
                    if e.primitive.name == "dot_general"]
  with backend.planning("gpu"):
    assert shapes() == [(6, 9)]
  with backend.planning("tpu"):
    assert shapes() == [(2, 3, 3)] * 3


def test_dense_starts_as_pytorchs_linear():
  params = layers.Dense(512, jnp.float32).init(jax.random.key(0), jnp.zeros((1, 256)))["params"]
  reference = torch.nn.Linear(256, 512)
  for name, tensor in (("kernel", reference.weight), ("bias", reference.bias)):
    tensor = tensor.detach().numpy()
    assert abs(params[name]).max() <= 1 / 16
    np.testing.assert_allclose(params[name].std(), 1 / 16 / 3**0.5, rtol=0.1)  # uniform
    np.testing.assert_allclose(params[name].std(), tensor.std(), rtol=0.1)
  assert "bias" not in layers.Dense(4, jnp.float32, use_bias=False).init(
      jax.random.key(0), jnp.zeros((1, 4)))["params"]


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_layer_norm_equals_pytorch(eps):
  reference = torch.nn.LayerNorm(16, eps=eps)
  with torch.no_grad():
    reference.weight.normal_(1.0, 0.2)
    reference.bias.normal_(0.0, 0.2)
  params = {"scale": reference.weight.detach().numpy(), "bias": reference.bias.detach().numpy()}
  x = 1e-3 * _x(2, 3, 16) + 0.01  # variance near eps, so that eps counts
  result = layers.LayerNorm(eps, jnp.float32).apply({"params": params}, x)
  parity.assert_parity("LayerNorm", "torch", result, reference(torch.tensor(x)).detach().numpy())


def test_rms_norm_equals_pytorch():
  reference = torch.nn.RMSNorm(16, eps=1e-5)
  with torch.no_grad():
    reference.weight.normal_(1.0, 0.2)
  scale, bias = reference.weight.detach().numpy(), _x(16)
  x = 3e-3 * _x(2, 3, 4, 16)
  expected = reference(torch.tensor(x)).detach().numpy()
  result = layers.RMSNorm(1e-5, jnp.float32).apply({"params": {"scale": scale}}, x)
  parity.assert_parity("RMSNorm", "torch", result, expected)
  result = layers.RMSNorm(1e-5, jnp.float32, use_bias=True).apply(
      {"params": {"scale": scale, "bias": bias}}, x)
  parity.assert_parity("RMSNorm with bias", "torch", result, expected + bias)


@pytest.mark.parametrize("norm", [layers.LayerNorm, layers.RMSNorm])
def test_norms_of_half_precision_have_float32_statistics(norm):
  x = jnp.asarray(_x(4, 256) + 100.0, jnp.bfloat16)
  params = norm(1e-6, jnp.float32).init(jax.random.key(0), x)
  half = norm(1e-6, jnp.bfloat16).apply(params, x)
  full = norm(1e-6, jnp.float32).apply(params, x.astype(jnp.float32))
  chex.assert_type(half, jnp.bfloat16)
  np.testing.assert_allclose(half.astype(jnp.float32), full, rtol=2**-8, atol=1e-6)  # one rounding


def test_mlp_equals_pytorch():
  reference = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.GELU(), torch.nn.Linear(9, 5))
  params = {name: {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}
            for name, layer in (("fc1", reference[0]), ("fc2", reference[2]))}
  x = 2 * _x(2, 3, 6)
  result = layers.Mlp(9, 5, jnp.float32).apply({"params": params}, x)
  parity.assert_parity("Mlp", "torch", result, reference(torch.tensor(x)).detach().numpy())


class _Layer(nn.Module):
  dtype: Any

  @nn.compact
  def __call__(self, x):
    return x + layers.Mlp(16, x.shape[-1], self.dtype, name="mlp")(jnp.sin(x)), None


class _Stack(nn.Module):
  remat: str

  @nn.compact
  def __call__(self, x):
    return layers.scan(_Layer, 3, self.remat)(jnp.float32, name="layers")(x)[0]


def test_a_scanned_stack_equals_its_layers_in_turn():
  x = jnp.asarray(_x(2, 3, 8))
  params = _Stack("none").init(jax.random.key(0), x)["params"]
  chex.assert_shape(params["layers"]["mlp"]["fc1"]["kernel"], (3, 8, 16))
  first, second = params["layers"]["mlp"]["fc1"]["kernel"][:2]
  assert not np.array_equal(first, second)  # every layer samples its own
  y = x
  for i in range(3):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
    y, _ = _Layer(jnp.float32).apply({"params": one}, y)
  np.testing.assert_allclose(_Stack("none").apply({"params": params}, x), y, rtol=1e-6, atol=1e-6)


def _gradient(policy, x):
  model = _Stack(policy)
  return lambda params: jax.grad(lambda p: jnp.square(model.apply(p, x)).sum())(params)


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_remat_changes_no_gradient(policy):
  x = jnp.asarray(_x(2, 3, 8))
  params = _Stack("none").init(jax.random.key(0), x)
  plain, again = (_gradient(p, x)(params) for p in ("none", policy))
  chex.assert_trees_all_close(plain, again, rtol=1e-5, atol=1e-6)


def test_remat_recomputes_what_its_policy_does_not_save():
  x = jnp.asarray(_x(2, 3, 8))
  params = _Stack("none").init(jax.random.key(0), x)
  programs = {p: str(jax.make_jaxpr(_gradient(p, x))(params)) for p in ("none", "dots", "full")}
  multiplications = {p: text.count("dot_general[") for p, text in programs.items()}
  sines = {p: text.count(" sin ") for p, text in programs.items()}
  assert multiplications["none"] == multiplications["dots"] < multiplications["full"]
  assert sines["none"] < sines["dots"]


def test_an_unknown_remat_policy_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="'some'; choose none, dots, full"):
    layers.remat(_Layer, "some")
