"""The perceptual networks in torchvision's and LPIPS' files: trunks and heads of LPIPS, and ConvNeXt."""

from collections.abc import Mapping
import re
from typing import Any

from unilip_jax.convert import engine, io, reading
from unilip_jax.models import presets

Rule = engine.Rule
Shapes = Mapping[str, tuple[int, ...]]

# Numbers of layers in torchvision's `features`.
_ALEXNET = (0, 3, 6, 8, 10)
_FIRES = (3, 4, 6, 7, 9, 10, 11, 12)  # of SqueezeNet 1.1
_SQUEEZENET_HEADS = 7  # LPIPS compares as many outputs; five of the other trunks


def vgg_rules(dims: presets.VggDims, torch: str, path: str) -> list[Rule]:
  """Returns the rules of VGG16's convolutions."""
  table, layer = [], 0
  for i, convs in enumerate(dims.convs):
    layer += i > 0  # the pooling before each slice but the first
    for j in range(convs):
      table += engine.conv(f"{torch}{layer}", f"{path}slice{i}_conv{j}")
      layer += 2  # a convolution and its ReLU
  return table


def alexnet_rules(torch: str, path: str) -> list[Rule]:
  """Returns the rules of AlexNet's convolutions."""
  return [rule for i, layer in enumerate(_ALEXNET)
          for rule in engine.conv(f"{torch}{layer}", f"{path}conv{i}")]


def squeezenet_rules(torch: str, path: str) -> list[Rule]:
  """Returns the rules of SqueezeNet 1.1."""
  return [*engine.conv(f"{torch}0", f"{path}stem"), *(
      rule for i, layer in enumerate(_FIRES) for name in ("squeeze", "expand1x1", "expand3x3")
      for rule in engine.conv(f"{torch}{layer}.{name}", f"{path}fire{i}/{name}"))]


def lpips_heads(count: int, torch: str, path: str) -> list[Rule]:
  """Returns the rules of the per-channel weights: `lin0.model.1.weight` … of shape (1, C, 1, 1)."""
  return [Rule(f"{torch}lin{i}.model.1.weight", f"{path}lin{i}", "channels_4d") for i in range(count)]


def convnext_rules(dims: presets.ConvNextDims, torch: str, path: str) -> list[Rule]:
  """Returns the rules of torchvision's ConvNeXt."""
  table = [*engine.conv(f"{torch}features.0.0", f"{path}stem"),
           *engine.norm(f"{torch}features.0.1", f"{path}stem_norm")]
  for i, depth in enumerate(dims.depths):
    if i:
      table += engine.norm(f"{torch}features.{2 * i}.0", f"{path}down{i}_norm")
      table += engine.conv(f"{torch}features.{2 * i}.1", f"{path}down{i}")
    block, inner = f"{torch}features.{2 * i + 1}.{{i}}.", f"{path}stage{i}/layers/"
    table += [
        Rule(f"{block}layer_scale", f"{inner}layer_scale", "channels", depth),
        *engine.conv(f"{block}block.0", f"{inner}depthwise", depth),
        *engine.norm(f"{block}block.2", f"{inner}norm", depth),
        *engine.linear(f"{block}block.3", f"{inner}mlp/fc1", depth),
        *engine.linear(f"{block}block.5", f"{inner}mlp/fc2", depth)]
  return [*table, *engine.norm(f"{torch}classifier.0", f"{path}head_norm"),
          *engine.linear(f"{torch}classifier.2", f"{path}head")]


def vgg_from_shapes(shapes: Shapes) -> presets.VggDims:
  """Returns VGG's dimensions from torchvision's names: a number that skips one more follows a pooling."""
  numbers = sorted(int(m[1]) for m in (
      re.match(r"features\.(\d+)\.weight", name) for name in shapes) if m)
  slices: list[list[int]] = []
  for previous, number in zip([-3, *numbers], numbers):
    if number - previous > 2:  # convolution, ReLU, pooling
      slices.append([])
    slices[-1].append(number)
  return presets.VggDims(
      channels=tuple(shapes[f"features.{s[0]}.weight"][0] for s in slices),
      convs=tuple(len(s) for s in slices))


def convnext_from_shapes(shapes: Shapes) -> presets.ConvNextDims:
  """Returns ConvNeXt's dimensions from torchvision's names: stages at odd numbers."""
  stages = range(1, reading.count_layers(shapes, r"features\.(\d+)\."), 2)
  return presets.ConvNextDims(
      depths=tuple(reading.count_layers(shapes, rf"features\.{i}\.(\d+)\.") for i in stages),
      widths=tuple(shapes[f"features.{i}.0.layer_scale"][0] for i in stages),
      classes=shapes["classifier.2.weight"][0])


def read_vgg(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads torchvision's VGG16, a part of LPIPS."""
  dims = vgg_from_shapes(source.tensors.shapes)
  return _trunk("lpips", dims, vgg_rules(dims, "features.", "lpips/vgg/"))


def read_alexnet(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads torchvision's AlexNet, a part of LPIPS with net="alex"."""
  shapes = source.tensors.shapes
  dims = presets.AlexNetDims(tuple(shapes[f"features.{layer}.weight"][0] for layer in _ALEXNET))
  return _trunk("lpips_alex", dims, alexnet_rules("features.", "lpips_alex/alex/"))


def read_squeezenet(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads torchvision's SqueezeNet 1.1, a part of LPIPS with net="squeeze".

  Raises:
    DimsError: for SqueezeNet 1.0, whose fire modules are elsewhere.
  """
  shapes = source.tensors.shapes
  if "features.5.squeeze.weight" in shapes:
    raise reading.DimsError("this is SqueezeNet 1.0; LPIPS uses 1.1: download squeezenet1_1-b8a52dc0.pth")
  dims = presets.SqueezeNetDims(shapes["features.0.weight"][0], *(
      tuple(shapes[f"features.{layer}.{name}.weight"][0] for layer in _FIRES)
      for name in ("squeeze", "expand1x1")))
  return _trunk("lpips_squeeze", dims, squeezenet_rules("features.", "lpips_squeeze/squeeze/"))


def _trunk(module: str, dims: Any, rules: list[Rule]) -> reading.Reading:
  return reading.Reading([reading.Part(module, presets.to_json(dims), rules)],
                         [(r"classifier\.", "classifier: LPIPS uses the features only")])


def read_lpips_heads(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads LPIPS' linear heads, the other part; the dimensions come with the trunk.

  The three files have the same names: their numbers of channels say to which trunk one belongs.
  """
  shapes = source.tensors.shapes
  count = reading.count_layers(shapes, r"lin(\d+)\.model\.1\.weight$")
  channels = tuple(shapes[f"lin{i}.model.1.weight"][1] for i in range(count))
  module = ("lpips_squeeze" if count == _SQUEEZENET_HEADS else
            "lpips_alex" if channels == presets.AlexNetDims().channels else "lpips")
  return reading.Reading([reading.Part(module, {}, lpips_heads(count, "", f"{module}/"))])


def read_convnext(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads torchvision's ConvNeXt-Small."""
  layout = {"convnext": lambda d: convnext_rules(d["convnext"], "", "convnext/")}
  return reading.Reading(
      reading.parts(layout, {"convnext": convnext_from_shapes(source.tensors.shapes)}))
