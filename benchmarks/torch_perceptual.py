"""The perceptual loss in PyTorch: LPIPS on VGG16's features, and ConvNeXt's logits from transformers.

A user would run this instead of models/perceptual.py and losses/reconstruction.py. `tables` maps its
tensors to JAX paths. Used by benchmarks only.
"""

import torch
from torch import nn
import torch.nn.functional as F
import transformers

from benchmarks import torch_tokenizer
from unilip_jax.convert import engine
from unilip_jax.models import presets

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_CONVNEXT_SIZE = 224


class Lpips(nn.Module):
  """Distance of images in VGG16's features, weighted per channel."""

  def __init__(self, dims: presets.VggDims):
    super().__init__()
    width, self.slices = 3, nn.ModuleList()
    for i, (channels, convs) in enumerate(zip(dims.channels, dims.convs)):
      layers: list[nn.Module] = [nn.MaxPool2d(2)] if i else []
      for _ in range(convs):
        layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(inplace=True)]
        width = channels
      self.slices.append(nn.Sequential(*layers))
    self.heads = nn.ParameterList(
        nn.Parameter(torch.full((c,), 1.0 / c)) for c in dims.channels)
    self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
    self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

  def features(self, unit: torch.Tensor) -> list[torch.Tensor]:
    """Each slice's activations of [B, 3, R, R] in [0, 1], of length 1 along the channels."""
    x, features = (2 * unit - 1 - self.shift) / self.scale, []
    for part in self.slices:
      x = part(x)
      y = x.float()
      features.append(y / (y.square().sum(1, keepdim=True).add(1e-30).sqrt() + 1e-10))
    return features

  def forward(self, unit: torch.Tensor, target: list[torch.Tensor]) -> torch.Tensor:
    """float32[B] distances to the images that `target` are the features of."""
    total = 0.0
    for head, a, b in zip(self.heads, self.features(unit), target):
      total = total + ((a - b).square() * head[:, None, None]).sum(1).mean((1, 2))
    return total


class Perceptual(nn.Module):
  """Both frozen networks; dtype is that of autocast around them."""

  def __init__(self, vgg: presets.VggDims, convnext: presets.ConvNextDims):
    super().__init__()
    self.lpips = Lpips(vgg)
    self.convnext = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(
        hidden_sizes=list(convnext.widths), depths=list(convnext.depths),
        num_labels=convnext.classes, layer_norm_eps=1e-6, drop_path_rate=0.0))
    self.eval().requires_grad_(False)

  def logits(self, unit: torch.Tensor) -> torch.Tensor:
    """ConvNeXt's of [B, 3, R, R] in [0, 1]."""
    image = F.interpolate(unit, size=(_CONVNEXT_SIZE,) * 2, mode="bilinear", antialias=True)
    return self.convnext(torch_tokenizer.normalise(image)).logits

  def forward(
      self, unit: torch.Tensor, target: torch.Tensor, lpips: float, convnext: float
  ) -> torch.Tensor:
    """(lpips · LPIPS + convnext · MSE of logits) / (lpips + convnext), the mean over the batch."""
    with torch.no_grad():
      features, logits = self.lpips.features(target), self.logits(target)
    distance = self.lpips(unit, features)
    difference = (self.logits(unit).float() - logits.float()).square().mean(1)
    return ((lpips * distance + convnext * difference) / (lpips + convnext)).mean()


def tables(vgg: presets.VggDims, convnext: presets.ConvNextDims) -> list[engine.Rule]:
  """Rules between `Perceptual` here and the JAX modules lpips and convnext."""
  rule, conv, norm, linear = engine.Rule, engine.conv, engine.norm, engine.linear
  table = []
  for i, convs in enumerate(vgg.convs):
    table += [rule(f"lpips.heads.{i}", f"lpips/lin{i}")]
    for j in range(convs):  # behind the pool, every other entry is a ReLU
      table += conv(f"lpips.slices.{i}.{2 * j + (i > 0)}", f"lpips/vgg/slice{i}_conv{j}")
  body = "convnext.convnext."
  table += [*conv(f"{body}embeddings.patch_embeddings", "convnext/stem"),
            *norm(f"{body}embeddings.layernorm", "convnext/stem_norm"),
            *norm(f"{body}layernorm", "convnext/head_norm"),
            *linear("convnext.classifier", "convnext/head")]
  for i, depth in enumerate(convnext.depths):
    stage = f"{body}encoder.stages.{i}."
    if i:
      table += [*norm(f"{stage}downsampling_layer.0", f"convnext/down{i}_norm"),
                *conv(f"{stage}downsampling_layer.1", f"convnext/down{i}")]
    layer, inner = f"{stage}layers.{{i}}.", f"convnext/stage{i}/layers/"
    table += [rule(f"{layer}layer_scale_parameter", f"{inner}layer_scale", count=depth),
              *conv(f"{layer}dwconv", f"{inner}depthwise", depth),
              *norm(f"{layer}layernorm", f"{inner}norm", depth),
              *linear(f"{layer}pwconv1", f"{inner}mlp/fc1", depth),
              *linear(f"{layer}pwconv2", f"{inner}mlp/fc2", depth)]
  return table
