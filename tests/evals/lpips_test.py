"""LPIPS on each trunk equals its package, recorded and live, with random trunks."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from tests import parity
from tests.golden import metrics
from unilip_jax.common import tree
from unilip_jax.convert import modules
from unilip_jax.convert import perceptual as conversion
from unilip_jax.models import perceptual, presets

# Distances by lpips 0.1.4 of the recorded images with the heads of `_random_heads`, which need no package.
_RECORDED = json.loads((pathlib.Path(metrics.__file__).with_name("lpips.json")).read_text())
_NETS = {
    "vgg": ("lpips", presets.VggDims()), "alex": ("lpips_alex", presets.AlexNetDims()),
    "squeeze": ("lpips_squeeze", presets.SqueezeNetDims())}
_PAIRS = (0, 1, 2)


def _rules(net):
  if net == "vgg":
    return conversion.vgg_rules(presets.VggDims(), "features.", "vgg/")
  rules = {"alex": conversion.alexnet_rules, "squeeze": conversion.squeezenet_rules}[net]
  return rules("features.", f"{net}/")


def _heads(net):
  return conversion.lpips_heads(len(_RECORDED[net]["channels"]), "", "")


def _trunk(net):
  """{torchvision's name: random weight by the recording's rule}."""
  module, dims = _NETS[net]
  shapes = modules.shapes(module, presets.to_json(dims))
  return {rule.torch: metrics.tensor(rule.torch, rule.move.to_torch(
      np.broadcast_to(np.float32(0), shapes[rule.path].shape)).shape) for rule in _rules(net)}


def _random_heads(net):
  return {rule.torch: np.abs(metrics.tensor(rule.torch, (1, channels, 1, 1)))
          for rule, channels in zip(_heads(net), _RECORDED[net]["channels"], strict=True)}


def _distances(net, tensors, pairs):
  """Distances of pairs in [0, 255] by the JAX network with converted tensors."""
  params = tree.unflatten({
      rule.path: rule.move.to_jax(tensors[rule.torch]) for rule in (*_rules(net), *_heads(net))})
  model = perceptual.Lpips(_NETS[net][1], jnp.float32)
  apply = jax.jit(lambda params, a, b: model.apply({"params": params}, a, b))
  return [apply(params, a / 255, b / 255)[0] for a, b in pairs]


@pytest.fixture(scope="module")
def pairs(recorded):
  """float32[1, H, W, 3] in [0, 255]: the recorded images and their noisy copies."""
  return [[np.asarray(Image.open(recorded / folder / f"{name}.png"))[None].astype(np.float32)
           for folder, name in (("images", i), ("psnr_ssim", f"noisy_{i}"))] for i in _PAIRS]


@pytest.mark.parametrize("net", _NETS)
def test_distances_equal_those_recorded_of_the_package(pairs, net):
  chosen = slice(1, 2) if net == "vgg" else slice(2)  # the smallest: VGG16 is expensive
  distances = _distances(net, _trunk(net) | _random_heads(net), pairs[chosen])
  parity.assert_parity(f"LPIPS, {net}", "recorded lpips 0.1.4, random heads", distances,
                       _RECORDED[net]["distances"][chosen])


@pytest.mark.parametrize("net", _NETS)
def test_distances_equal_the_live_package_with_its_own_heads(recorded, pairs, net, reference_programs):
  expected = [pair["distance"] for pair in
              json.loads((recorded / "lpips" / "distances.json").read_text())[net]["pairs"]]
  live, random = [], []
  for a, b in pairs:
    arrays = _trunk(net) | {"net": np.array(net), "a": a / 127.5 - 1, "b": b / 127.5 - 1}
    results = reference_programs("lpips", arrays)
    live.append(results.pop("distances")[0])
    random.append(reference_programs("lpips", arrays | _random_heads(net))["distances"][0])
  parity.assert_parity(f"LPIPS, {net}", "recorded lpips 0.1.4, published heads", live, expected)
  parity.assert_parity(f"LPIPS, {net}", "lpips 0.1.4, random heads", random, _RECORDED[net]["distances"])
  parity.assert_parity(f"LPIPS, {net}", "lpips 0.1.4", _distances(net, _trunk(net) | results, pairs), live)
