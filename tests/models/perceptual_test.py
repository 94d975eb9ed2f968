"""LPIPS and ConvNeXt equal PyTorch references, with gradients of the image, and have published sizes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn as torch_nn
import transformers

from tests import parity
from unilip_jax.common import tree
from unilip_jax.models import perceptual, presets

_VGG = presets.VggDims(channels=(4, 6, 8, 8, 8), convs=(2, 2, 3, 3, 3))
_CONVNEXT = presets.ConvNextDims(depths=(1, 2, 2, 1), widths=(8, 12, 16, 24), classes=10)


def _nchw(x):
  return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


class _Lpips(torch_nn.Module):
  """LPIPS by its paper's formula, on images in [-1, 1]."""

  def __init__(self, dims):
    super().__init__()
    widths = [3]
    self.slices = torch_nn.ModuleList()
    for channels, convs in zip(dims.channels, dims.convs):
      layers = []
      for _ in range(convs):
        layers += [torch_nn.Conv2d(widths[-1], channels, 3, padding=1), torch_nn.ReLU()]
        widths.append(channels)
      self.slices.append(torch_nn.Sequential(*layers))
    self.lins = torch_nn.ParameterList(torch_nn.Parameter(torch.rand(c)) for c in dims.channels)
    self.shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    self.scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

  def forward(self, a, b):
    a, b, total = (a - self.shift) / self.scale, (b - self.shift) / self.scale, 0.0
    for i, (part, lin) in enumerate(zip(self.slices, self.lins)):
      if i:
        a, b = (torch_nn.functional.max_pool2d(x, 2) for x in (a, b))
      a, b = part(a), part(b)
      units = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
      difference = (units[0] - units[1]).square() * lin[:, None, None]
      total = total + difference.sum(1).mean((1, 2))
    return total

  def named(self):
    flat = {}
    for i, part in enumerate(self.slices):
      for j, conv in enumerate(part[::2]):
        flat[f"vgg/slice{i}_conv{j}/kernel"] = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        flat[f"vgg/slice{i}_conv{j}/bias"] = conv.bias.detach().numpy()
      flat[f"lin{i}"] = self.lins[i].detach().numpy()
    return tree.unflatten(flat)


@pytest.fixture(scope="module")
def lpips():
  """(PyTorch's LPIPS, compiled (a, b) -> (gradient of a, distances) with its weights)."""
  torch.manual_seed(0)
  reference = _Lpips(_VGG)
  model, params = perceptual.Lpips(_VGG, jnp.float32), reference.named()

  def total(a, b):
    distances = model.apply({"params": params}, a, b)
    return distances.sum(), distances

  return reference, jax.jit(jax.grad(total, has_aux=True))


def test_lpips_and_its_image_gradient_equal_the_formula(lpips):
  reference, gradient_and_distances = lpips
  a, b = np.random.default_rng(0).random((2, 3, 48, 48, 3), np.float32)
  x = _nchw(a).requires_grad_()
  expected = reference(2 * x - 1, 2 * _nchw(b) - 1)
  gradient, distances = gradient_and_distances(a, b)
  parity.assert_parity("LPIPS", "PyTorch by its definition", distances, expected.detach().numpy())
  wanted, = torch.autograd.grad(expected.sum(), x)
  parity.assert_parity("LPIPS, image gradient", "PyTorch by its definition", gradient,
                       np.moveaxis(wanted.numpy(), 1, -1))


def test_lpips_of_equal_images_is_zero_with_a_finite_gradient(lpips):
  black = np.zeros((3, 48, 48, 3), np.float32)
  gradient, distances = lpips[1](black, black)
  assert distances.max() < 1e-12  # rounding is left
  chex.assert_tree_all_finite(gradient)


# path, transformers' name, transposition
_BLOCK = (
    ("depthwise/kernel", "dwconv.weight", (2, 3, 1, 0)), ("depthwise/bias", "dwconv.bias", None),
    ("norm/scale", "layernorm.weight", None), ("norm/bias", "layernorm.bias", None),
    ("mlp/fc1/kernel", "pwconv1.weight", (1, 0)), ("mlp/fc1/bias", "pwconv1.bias", None),
    ("mlp/fc2/kernel", "pwconv2.weight", (1, 0)), ("mlp/fc2/bias", "pwconv2.bias", None),
    ("layer_scale", "layer_scale_parameter", None))


def _convnext_params(reference, dims):
  """Parameters of transformers' ConvNeXt by their paths here."""
  state = {k: v.detach().numpy() for k, v in reference.state_dict().items()}
  flat = {}

  def pair(name, path, weight="kernel", order=None):
    value = state[f"{name}.weight"]
    flat[f"{path}/{weight}"] = value.transpose(order) if order else value
    flat[f"{path}/bias"] = state[f"{name}.bias"]

  pair("convnext.embeddings.patch_embeddings", "stem", order=(2, 3, 1, 0))
  pair("convnext.embeddings.layernorm", "stem_norm", "scale")
  for i, depth in enumerate(dims.depths):
    stage = f"convnext.encoder.stages.{i}"
    if i:
      pair(f"{stage}.downsampling_layer.0", f"down{i}_norm", "scale")
      pair(f"{stage}.downsampling_layer.1", f"down{i}", order=(2, 3, 1, 0))
    for path, name, order in _BLOCK:
      tensors = [state[f"{stage}.layers.{j}.{name}"] for j in range(depth)]
      flat[f"stage{i}/layers/{path}"] = np.stack(
          [t.transpose(order) if order else t for t in tensors])
  pair("convnext.layernorm", "head_norm", "scale")
  pair("classifier", "head", order=(1, 0))
  return tree.unflatten(flat)


def test_convnext_and_its_image_gradient_equal_transformers():
  torch.manual_seed(0)
  reference = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(
      hidden_sizes=list(_CONVNEXT.widths), depths=list(_CONVNEXT.depths), num_labels=10,
      layer_scale_init_value=0.5, layer_norm_eps=1e-6, drop_path_rate=0.0)).eval()
  with torch.no_grad():
    for value in reference.parameters():  # away from the start's zeros and ones
      value.add_(0.1 * torch.randn(value.shape))
  model, params = perceptual.ConvNext(_CONVNEXT, jnp.float32), _convnext_params(reference, _CONVNEXT)
  image = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
  weights = np.random.default_rng(1).standard_normal((2, 10), np.float32)
  x = _nchw(image).requires_grad_()
  expected = reference(x).logits

  def weighted(x):
    logits = model.apply({"params": params}, x)
    return (logits * weights).sum(), logits

  gradient, logits = jax.jit(jax.grad(weighted, has_aux=True))(image)
  parity.assert_parity("ConvNeXt", "transformers", logits, expected.detach().numpy())
  wanted, = torch.autograd.grad((expected * torch.from_numpy(weights)).sum(), x)
  parity.assert_parity("ConvNeXt, image gradient", "transformers", gradient,
                       np.moveaxis(wanted.numpy(), 1, -1))


@pytest.mark.parametrize("size", ["1b", "3b"])
def test_published_parameter_counts(size):
  preset = presets.get(size)
  image = jnp.zeros((1, 224, 224, 3))
  convnext = jax.eval_shape(perceptual.ConvNext(preset.convnext, jnp.float32).init,
                            jax.random.key(0), image)
  lpips = jax.eval_shape(perceptual.Lpips(preset.vgg, jnp.float32).init,
                         jax.random.key(0), image, image)
  assert tree.count(convnext["params"]) == 50_223_688  # torchvision's convnext_small
  assert tree.count(lpips["params"]["vgg"]) == 14_714_688  # VGG16's convolutions
