"""Names of the loss networks: LPIPS-VGG16, ConvNeXt and the patch discriminator.

VGG16 comes under two naming schemes: LPIPS' slices (`net.slice1.0`) and torchvision's
(`features.0`); the number behind is the same layer's.
"""

from unilip_jax.convert import rules as engine
from unilip_jax.convert import tables_internvit as names
from unilip_jax.models import presets

Rule = engine.Rule

FILES = {
    "vgg16": "torchvision's VGG16, vgg16-397923af.pth",
    "lpips": "LPIPS' linear heads, vgg.pth (richzhang/PerceptualSimilarity)",
    "convnext": "torchvision's ConvNeXt-Small, convnext_small-0c510722.pth"}


def _conv(torch: str, path: str) -> list[Rule]:
  return [Rule(f"{torch}.weight", f"{path}/kernel", "conv"), Rule(f"{torch}.bias", f"{path}/bias")]


def vgg_rules(dims: presets.VggDims, torch: str, path: str, *, sliced: bool) -> list[Rule]:
  """VGG16's convolutions.

  Args:
    dims: channels and convolutions per slice.
    torch: prefix, e.g. "net." (sliced) or "features.".
    path: prefix of ours, e.g. "lpips/vgg/".
    sliced: whether the names hold LPIPS' slices.
  """
  table, layer = [], 0
  for i, convs in enumerate(dims.convs):
    layer += i > 0  # the pooling before each slice but the first
    for j in range(convs):
      scope = f"slice{i + 1}." if sliced else ""
      table += _conv(f"{torch}{scope}{layer}", f"{path}slice{i}_conv{j}")
      layer += 2  # a convolution and its ReLU
  return table


def lpips_heads(dims: presets.VggDims, torch: str, path: str) -> list[Rule]:
  """The per-channel weights: `lin0.model.1.weight` … of shape (1, C, 1, 1)."""
  return [Rule(f"{torch}lin{i}.model.1.weight", f"{path}lin{i}", "channels_4d")
          for i in range(len(dims.channels))]


def lpips_rules(dims: presets.VggDims, torch: str, path: str) -> list[Rule]:
  """LPIPS as one module, slices and heads."""
  return [*vgg_rules(dims, f"{torch}net.", f"{path}vgg/", sliced=True),
          *lpips_heads(dims, torch, path)]


def convnext_rules(dims: presets.ConvNextDims, torch: str, path: str) -> list[Rule]:
  """torchvision's ConvNeXt; arguments as of `vgg_rules`."""
  table = [*_conv(f"{torch}features.0.0", f"{path}stem"),
           *names.norm(f"{torch}features.0.1", f"{path}stem_norm")]
  for i, depth in enumerate(dims.depths):
    if i:
      table += names.norm(f"{torch}features.{2 * i}.0", f"{path}down{i}_norm")
      table += _conv(f"{torch}features.{2 * i}.1", f"{path}down{i}")
    block, ours = f"{torch}features.{2 * i + 1}.{{i}}.", f"{path}stage{i}/layers/"
    table += [
        Rule(f"{block}layer_scale", f"{ours}layer_scale", "channels", depth),
        Rule(f"{block}block.0.weight", f"{ours}depthwise/kernel", "depthwise", depth),
        Rule(f"{block}block.0.bias", f"{ours}depthwise/bias", "copy", depth),
        *names.norm(f"{block}block.2", f"{ours}norm", depth),
        *names.linear(f"{block}block.3", f"{ours}mlp/fc1", depth),
        *names.linear(f"{block}block.5", f"{ours}mlp/fc2", depth)]
  return [*table, *names.norm(f"{torch}classifier.0", f"{path}head_norm"),
          *names.linear(f"{torch}classifier.2", f"{path}head")]


def discriminator_rules(dims: presets.DiscriminatorDims, torch: str, path: str) -> list[Rule]:
  """The patch discriminator; arguments as of `vgg_rules`."""
  table = _conv(f"{torch}block_in.0", f"{path}conv_in")
  for i in range(len(dims.channels)):
    table += _conv(f"{torch}blocks.{i}.0", f"{path}conv_{i}")
    table += names.norm(f"{torch}blocks.{i}.2", f"{path}norm_{i}")
  return [*table, *_conv(f"{torch}to_logits.0", f"{path}logits_in"),
          *_conv(f"{torch}to_logits.2", f"{path}logits_out")]
