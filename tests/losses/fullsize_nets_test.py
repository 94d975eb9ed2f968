"""Loss terms with full-size VGG16, ConvNeXt-Small and discriminator equal the recorded official ones.

The weights come from the formula that the recording states, under the PyTorch names it lists.
"""

import functools
import json
import math
import re
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_model, parity
from unilip_jax.convert import engine
from unilip_jax.convert import perceptual as perceptual_convert
from unilip_jax.losses import gan, reconstruction
from unilip_jax.models import discriminator, perceptual, presets, tokenizer
from unilip_jax.ops import image as image_ops

pytestmark = pytest.mark.slow


def _formula_weight(name: str, shape: list[int]) -> np.ndarray:
  """The recording's own rule."""
  sample = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
  sample = sample.astype(np.float32)
  if name.endswith("layer_scale"):
    return np.float32(0.1) + np.float32(0.02) * sample
  if name.endswith("bias"):
    return np.float32(0.02) * sample
  if len(shape) == 1:
    return np.float32(1.0) + np.float32(0.02) * sample
  if re.match(r"lin\d\.model\.1\.weight", name):
    return np.abs(sample) / np.float32(shape[1])
  return sample * np.float32(math.sqrt(2.0 / np.prod(shape[1:])))


@pytest.fixture(scope="module")
def recorded(golden):
  return json.loads((golden / "losses_224_fullsize_nets.json").read_text())


@pytest.fixture(scope="module")
def values(golden, recorded):
  """Our terms on the recorded image and its reconstruction."""
  preset = presets.get("1b")
  tables = {"lpips": golden_model.lpips_rules(preset.vgg, "", ""),
            "convnext": perceptual_convert.convnext_rules(preset.convnext, "", ""),
            "discriminator": golden_model.discriminator_rules(preset.discriminator, "", "")}
  nets = {"lpips": perceptual.Lpips(preset.vgg, jnp.float32),
          "convnext": perceptual.ConvNext(preset.convnext, jnp.float32),
          "discriminator": discriminator.Discriminator(preset.discriminator, jnp.float32)}
  apply = {}
  for name, net in nets.items():
    tensors = {k: _formula_weight(k, shape) for k, shape in recorded["names"][name].items()}
    params = engine.from_torch(tensors, tables[name], None)
    # Weights are arguments: as constants of the program they would be compiled.
    forward = jax.jit(lambda params, *x, net=net: net.apply({"params": params}, *x))
    apply[name] = functools.partial(forward, params)
  model = tokenizer.Tokenizer(golden_model.tokenizer_dims(golden), dtype=jnp.float32)
  params = golden_model.tokenizer_params(golden)
  unit = image_ops.unit_from_pixels(np.load(golden / "tokenizer_224.npz")["image_u8"])
  out = jax.jit(lambda params, x: model.apply({"params": params}, x))(params, unit)
  recon = image_ops.unit_from_signed(out["reconstruction"])
  terms = {
      "reconstruction_loss": reconstruction.l2(recon, unit),
      "perceptual_loss": 1.1 * reconstruction.perceptual(
          apply["lpips"], apply["convnext"], recon, unit, lpips_weight=1.0, convnext_weight=0.1)}
  return terms, apply["discriminator"](unit), apply["discriminator"](recon)


_REFERENCE = "golden losses_224_fullsize_nets"


@pytest.mark.parametrize("step", ["step0", "step200000"])
def test_generator_terms(recorded, values, step):
  terms, _, fake = values
  expected = recorded[f"stage2/{step}/generator"]
  for name, value in terms.items():
    parity.assert_parity(f"{name}, full-size networks", _REFERENCE, value, expected[name])
  total = terms["reconstruction_loss"] + terms["perceptual_loss"] + expected["distill_loss"]
  if step != "step0":
    gan_loss = gan.generator_loss(fake)
    parity.assert_parity("GAN loss, full-size networks", _REFERENCE, gan_loss, expected["gan_loss"])
    total += 0.1 * gan_loss
  parity.assert_parity("generator loss, full-size networks", _REFERENCE, total, expected["total_loss"])


def test_discriminator_terms(recorded, values):
  _, real, fake = values
  chex.assert_shape(real, (1, 16, 16, 1))
  np.testing.assert_allclose(
      [float(fake.mean()), float(fake.std(ddof=1))], recorded["disc_logits_mean_std"], rtol=1e-3)
  averages = gan.init_averages()
  for step in ("step0", "step200000"):
    expected = recorded[f"stage2/{step}/discriminator"]
    loss, (averages, metrics) = gan.discriminator_loss(
        real, fake, averages, lecam_weight=0.001, decay=0.999)
    for name in ("logits_real", "logits_fake", "lecam_loss"):
      parity.assert_parity("discriminator, full-size", _REFERENCE, metrics[name], expected[name])
  parity.assert_parity("discriminator, full-size", _REFERENCE, loss, expected["discriminator_loss"])
