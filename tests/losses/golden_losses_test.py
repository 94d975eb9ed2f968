"""Every term of the official losses, from the recorded images, networks and averages."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import golden_model, parity
from unilip_jax.convert import engine
from unilip_jax.convert import perceptual as perceptual_convert
from unilip_jax.losses import gan, reconstruction
from unilip_jax.models import discriminator, perceptual, presets
from unilip_jax.ops import image as image_ops

_WEIGHTS = dict(lpips_weight=1.0, convnext_weight=0.1)


@pytest.fixture(scope="module")
def nets(golden):
  """Apply functions of the recorded narrow networks."""
  tensors = safetensors_numpy.load_file(golden / "ckpt/tiny_loss_nets.safetensors")
  preset = presets.get("tiny")
  disc_dims = presets.DiscriminatorDims(stem=32, channels=(32, 64, 128))
  table = (golden_model.lpips_rules(preset.vgg, "perceptual_loss.lpips.", "lpips/")
           + perceptual_convert.convnext_rules(preset.convnext, "perceptual_loss.convnext.", "convnext/")
           + golden_model.discriminator_rules(disc_dims, "discriminator.", "discriminator/"))
  params = engine.from_torch(tensors, table, None)
  disc = discriminator.Discriminator(disc_dims, jnp.float32)
  lpips = perceptual.Lpips(preset.vgg, jnp.float32)
  convnext = perceptual.ConvNext(preset.convnext, jnp.float32)
  return {
      "lpips": jax.jit(lambda a, b: lpips.apply({"params": params["lpips"]}, a, b)),
      "convnext": jax.jit(lambda x: convnext.apply({"params": params["convnext"]}, x)),
      "discriminator": jax.jit(lambda x: disc.apply({"params": params["discriminator"]}, x)),
      "discriminator_module": disc, "params": params}


@pytest.fixture(scope="module")
def images(golden):
  """(recorded values, the real images and their recorded reconstruction in [0, 1])."""
  run = np.load(golden / "tokenizer_56.npz")
  recon = (golden_model.nhwc(run["recon"]) + 1) / 2
  return np.load(golden / "loss_parts_56.npz"), image_ops.unit_from_pixels(run["image_u8"]), recon


def test_parts_equal_the_recorded_ones(nets, images):
  # The recorded `lpips` and `convnext_logits_*` were taken in training mode, with dropout and
  # stochastic depth drawn; `perceptual` is the loss module's own value, in evaluation mode.
  parts, real, fake = images
  reference = "golden loss_parts_56"
  logits = [nets["convnext"](perceptual.convnext_input(x)) for x in (fake, real)]
  difference = jnp.square(logits[0] - logits[1]).mean()
  per_example = (nets["lpips"](fake, real) + 0.1 * difference) / 1.1
  parity.assert_parity("LPIPS + ConvNeXt", reference, per_example, parts["perceptual"].ravel())
  resized = image_ops.resize_bilinear(fake, 224, 224, antialias=True)
  recorded = golden_model.nhwc(parts["resized_recon01_224_sub"])
  parity.assert_parity("resize to 224", reference, resized[:, ::16, ::16], recorded)
  imagenet = image_ops.imagenet_from_unit(real)
  for name, image in (("recon01", fake), ("inputs01", real), ("inputs_imagenet", imagenet)):
    logits = nets["discriminator"](image)
    parity.assert_parity("discriminator", reference, logits,
                         golden_model.nhwc(parts[f"disc_logits_{name}"]))


def test_every_term_of_both_stages_in_the_recorded_order(golden, nets, images):
  _, real, fake = images
  recorded = json.loads((golden / "losses_56.json").read_text())
  terms = golden_terms(nets, real, fake)
  for stage, start in (("stage1", 500_000), ("stage2", 200_000)):
    averages = gan.init_averages()
    for step in (0, start):
      generator = recorded[f"{stage}/step{step}/generator"]
      check("losses_56", terms, generator, on=step == start)
      # Stage 1's discriminator sees images in the wrong range, officially.
      wrong = stage == "stage1"
      real_logits = nets["discriminator"](image_ops.imagenet_from_unit(real) if wrong else real)
      fake_logits = nets["discriminator"](fake_of(stage, real, fake))
      expected = recorded[f"{stage}/step{step}/discriminator"]
      averages = check_discriminator("losses_56", real_logits, fake_logits, averages, expected,
                                     on=step == start)
  third = recorded["stage2/step200000/discriminator_3rd_call"]
  check_discriminator("losses_56", real_logits, fake_logits, averages, third, on=True)


def fake_of(stage, real, fake):
  del real
  return fake if stage == "stage2" else image_ops.signed_from_unit(fake)


def golden_terms(nets, real, fake):
  return {
      "reconstruction_loss": reconstruction.l2(fake, real),
      "perceptual_loss": 1.1 * reconstruction.perceptual(
          nets["lpips"], nets["convnext"], fake, real, **_WEIGHTS),
      "gan_loss": gan.generator_loss(nets["discriminator"](fake))}


def check(source, terms, recorded, *, on):
  total = terms["reconstruction_loss"] + terms["perceptual_loss"] + recorded.get("distill_loss", 0)
  if on:
    total += 0.1 * terms["gan_loss"]
    parity.assert_parity("GAN loss", f"golden {source}", terms["gan_loss"], recorded["gan_loss"])
    parity.assert_parity("GAN loss", f"golden {source}", 0.1 * terms["gan_loss"],
                         recorded["weighted_gan_loss"])
  for name in ("reconstruction_loss", "perceptual_loss"):
    parity.assert_parity(name, f"golden {source}", terms[name], recorded[name])
  parity.assert_parity("generator loss", f"golden {source}", total, recorded["total_loss"])


def check_discriminator(source, real, fake, averages, recorded, *, on):
  reference = f"golden {source}"
  loss, (averages, metrics) = gan.discriminator_loss(
      real, fake, averages, lecam_weight=0.001, decay=0.999)
  for name in ("logits_real", "logits_fake", "lecam_loss"):
    parity.assert_parity("discriminator loss", reference, metrics[name], recorded[name])
  # Before its start the official module multiplies the hinge term by 0; here nothing runs at all.
  expected = loss if on else metrics["lecam_loss"]
  parity.assert_parity("discriminator loss", reference, expected, recorded["discriminator_loss"])
  for name in ("real", "fake"):
    if f"ema_{name}_after" in recorded:
      parity.assert_parity("LeCam averages", reference, averages[name], recorded[f"ema_{name}_after"])
  return averages
