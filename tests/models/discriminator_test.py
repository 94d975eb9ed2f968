"""The patch discriminator and its gradients equal a PyTorch reference; pooling and blur for any size."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn as torch_nn
from torch.nn import functional as F

from tests import golden_model, parity
from unilip_jax.common import tree
from unilip_jax.models import discriminator, presets

_REFERENCE = "PyTorch by its definition"
_DIMS = presets.DiscriminatorDims(stem=8, channels=(8, 16, 24), groups=4, pool=4)


def _same_blur(x):
  """Blur (1, 3, 3, 1)² / 64 of stride 2 with TensorFlow's "same" padding, in PyTorch."""
  line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
  kernel = (line[:, None] * line[None]).expand(x.shape[1], 1, 4, 4)
  pads = []
  for size in (x.shape[3], x.shape[2]):
    total = max((-(-size // 2) - 1) * 2 + 4 - size, 0)
    pads += [total // 2, total - total // 2]
  return F.conv2d(F.pad(x, pads), kernel, stride=2, groups=x.shape[1])


class _Reference(torch_nn.Module):

  def __init__(self, d):
    super().__init__()
    widths = (d.stem, *d.channels)
    self.block_in = torch_nn.Sequential(torch_nn.Conv2d(3, d.stem, 5, padding=2))
    self.blocks = torch_nn.ModuleList(
        torch_nn.ModuleList([torch_nn.Conv2d(a, b, 3, padding=1), torch_nn.GroupNorm(d.groups, b)])
        for a, b in itertools.pairwise(widths))
    self.logits_in = torch_nn.Conv2d(widths[-1], widths[-1], 1)
    self.logits_out = torch_nn.Conv2d(widths[-1], 1, 5, padding=2)
    self.pool = torch_nn.AdaptiveMaxPool2d(d.pool)

  def forward(self, x):
    x = F.leaky_relu(self.block_in(x), 0.1)
    for conv, norm in self.blocks:
      x = F.leaky_relu(norm(_same_blur(conv(x))), 0.1)
    return self.logits_out(F.leaky_relu(self.logits_in(self.pool(x)), 0.1))

  def named(self):
    """Its tensors by paths and in layouts of JAX."""
    modules = {"conv_in": self.block_in[0], "logits_in": self.logits_in,
               "logits_out": self.logits_out}
    for i, (conv, norm) in enumerate(self.blocks):
      modules |= {f"conv_{i}": conv, f"norm_{i}": norm}
    flat = {}
    for name, module in modules.items():
      weight = "scale" if name.startswith("norm") else "kernel"
      flat |= {f"{name}/{weight}": module.weight, f"{name}/bias": module.bias}
    return flat


def _to_jax(tensor):
  value = tensor.detach().numpy()
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


@pytest.fixture(scope="module")
def reference():
  torch.manual_seed(0)
  return _Reference(_DIMS)


@pytest.mark.parametrize("size", [56, 50, 32])
def test_logits_and_every_gradient_equal_pytorch(reference, size):
  params = tree.unflatten({p: _to_jax(t) for p, t in reference.named().items()})
  image = np.random.default_rng(size).random((2, size, size, 3), np.float32)
  weights = np.random.default_rng(1).standard_normal((2, 4, 4, 1), np.float32)
  model = discriminator.Discriminator(_DIMS, jnp.float32)

  def loss(params, image):
    logits = model.apply({"params": params}, image)
    return (logits * weights).sum(), logits

  (grads, image_grad), logits = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, image)
  x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).requires_grad_()
  out = reference(x)
  parity.assert_parity("discriminator", _REFERENCE, logits, out.detach().numpy().transpose(0, 2, 3, 1))
  named = reference.named()
  wanted = torch.autograd.grad(
      (out * torch.from_numpy(weights.transpose(0, 3, 1, 2).copy())).sum(), [x, *named.values()])
  parity.assert_parity(
      "discriminator, gradients", _REFERENCE, image_grad, wanted[0].numpy().transpose(0, 2, 3, 1))
  result = tree.flatten(grads)
  for path, value in zip(named, wanted[1:]):
    parity.assert_parity("discriminator, gradients", _REFERENCE, result[path], _to_jax(value))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 7, 16, 28])
def test_adaptive_max_pool_equals_torch_at_any_size(size):
  x = np.random.default_rng(size).standard_normal((2, size, size + 2, 3), np.float32)
  reference = F.adaptive_max_pool2d(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), 4)
  np.testing.assert_array_equal(
      discriminator.adaptive_max_pool(jnp.asarray(x), 4), reference.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("size", [4, 7, 8, 13])
def test_blur_keeps_the_mean_inside_and_halves_rounding_up(size):
  y = discriminator.blur(jnp.ones((1, size, size, 2)))
  chex.assert_shape(y, (1, -(-size // 2), -(-size // 2), 2))
  np.testing.assert_allclose(y[:, 1:-1, 1:-1], 1.0, rtol=1e-6)


def test_every_published_parameter_has_an_official_name():
  dims = presets.get("1b").discriminator
  shapes = jax.eval_shape(
      discriminator.Discriminator(dims, jnp.float32).init, jax.random.key(0),
      jnp.zeros((1, 224, 224, 3)))["params"]
  paths = {rule.path for rule in golden_model.discriminator_rules(dims, "", "")}
  assert set(tree.flatten(shapes)) == paths
