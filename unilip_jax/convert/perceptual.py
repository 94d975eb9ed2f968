"""The perceptual loss networks in torchvision's and LPIPS' files: LPIPS-VGG16 and ConvNeXt."""

from collections.abc import Mapping
import re

from unilip_jax.convert import engine, io, reading
from unilip_jax.models import presets

Rule = engine.Rule
Shapes = Mapping[str, tuple[int, ...]]


def vgg_rules(dims: presets.VggDims, torch: str, path: str) -> list[Rule]:
  """Returns the rules of VGG16's convolutions."""
  table, layer = [], 0
  for i, convs in enumerate(dims.convs):
    layer += i > 0  # the pooling before each slice but the first
    for j in range(convs):
      table += engine.conv(f"{torch}{layer}", f"{path}slice{i}_conv{j}")
      layer += 2  # a convolution and its ReLU
  return table


def lpips_heads(dims: presets.VggDims, torch: str, path: str) -> list[Rule]:
  """Returns the rules of the per-channel weights: `lin0.model.1.weight` … of shape (1, C, 1, 1)."""
  return [Rule(f"{torch}lin{i}.model.1.weight", f"{path}lin{i}", "channels_4d")
          for i in range(len(dims.channels))]


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
  rules = vgg_rules(dims, "features.", "lpips/vgg/")
  return reading.Reading([reading.Part("lpips", presets.to_json(dims), rules)],
                         [(r"classifier\.", "classifier: LPIPS uses the features only")])


def read_lpips_heads(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads LPIPS' linear heads, the other part; the dimensions come with VGG16."""
  numbers = range(reading.count_layers(source.tensors.shapes, r"lin(\d+)\.model\.1\.weight$"))
  channels = tuple(source.tensors.shapes[f"lin{i}.model.1.weight"][1] for i in numbers)
  return reading.Reading(
      [reading.Part("lpips", {}, lpips_heads(presets.VggDims(channels=channels), "", "lpips/"))])


def read_convnext(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads torchvision's ConvNeXt-Small."""
  layout = {"convnext": lambda d: convnext_rules(d["convnext"], "", "convnext/")}
  return reading.Reading(
      reading.parts(layout, {"convnext": convnext_from_shapes(source.tensors.shapes)}))
