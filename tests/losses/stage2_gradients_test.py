"""Gradients of the complete stage-2 loss equal the recorded official ones, parameter by parameter.

The image losses have kinks (VGG's ReLUs and max-pools): moving the reconstruction by 1e-6 moves their
gradient with respect to it by up to 4e-3. They are therefore differentiated at the recorded
reconstruction, which this tokenizer's equals within 2e-6, and the result is pulled back through it.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import golden_model, parity
from unilip_jax.convert import engine
from unilip_jax.convert import internvit as internvit_convert
from unilip_jax.convert import perceptual as perceptual_convert
from unilip_jax.losses import gan, reconstruction
from unilip_jax.models import discriminator, perceptual, presets, tokenizer
from unilip_jax.ops import image as image_ops

pytestmark = pytest.mark.optimized  # discriminator gradients: 3e-4 of their norm without


@pytest.fixture(scope="module")
def run(golden):
  """Gradients in PyTorch's names and layouts: {"step0", "step200000", "discriminator"}, and losses."""
  dims = golden_model.tokenizer_dims(golden)
  model = tokenizer.Tokenizer(dims, dtype=jnp.float32)
  params = golden_model.tokenizer_params(golden)
  original = safetensors_numpy.load_file(golden / "pretrained/mllm/model.safetensors")
  teacher_rules = [*internvit_convert.rules(dims.vit, "vision_model.", "vision_tower/"),
                   *internvit_convert.mlp1_rules("mlp1.", "mlp1/")]
  teacher = engine.from_torch(original, teacher_rules, None, skip=[("language_model", "no LLM here")])
  nets = safetensors_numpy.load_file(golden / "ckpt/tiny_loss_nets.safetensors")
  preset = presets.get("tiny")
  disc_dims = presets.DiscriminatorDims(stem=32, channels=(32, 64, 128))
  disc_rules = golden_model.discriminator_rules(disc_dims, "discriminator.", "discriminator/")
  table = (golden_model.lpips_rules(preset.vgg, "perceptual_loss.lpips.", "lpips/")
           + perceptual_convert.convnext_rules(preset.convnext, "perceptual_loss.convnext.", "convnext/")
           + disc_rules)
  frozen = engine.from_torch(nets, table, None)
  lpips = perceptual.Lpips(preset.vgg, jnp.float32)
  convnext = perceptual.ConvNext(preset.convnext, jnp.float32)
  disc = discriminator.Discriminator(disc_dims, jnp.float32)
  unit = image_ops.unit_from_pixels(np.load(golden / "tokenizer_56.npz")["image_u8"])
  target = model.apply({"params": teacher}, unit, method=model.features)

  recorded_recon = (golden_model.nhwc(np.load(golden / "tokenizer_56.npz")["recon"]) + 1) / 2

  # Weights are arguments: as constants of a program they would be compiled.
  def image_loss(recon, gan_weight, nets):
    perceptual_loss = reconstruction.perceptual(
        lambda a, b: lpips.apply({"params": nets["lpips"]}, a, b),
        lambda x: convnext.apply({"params": nets["convnext"]}, x),
        recon, unit, lpips_weight=1.0, convnext_weight=0.1)
    logits = disc.apply({"params": nets["discriminator"]}, recon)
    return (reconstruction.l2(recon, unit) + 1.1 * perceptual_loss
            + gan_weight * gan.generator_loss(logits))

  def pulled_back(params, slope):
    out = model.apply({"params": params}, unit)
    recon = image_ops.unit_from_signed(out["reconstruction"])
    distill = reconstruction.distill(out["features"], target)
    return (slope * recon).sum() + distill, (recon, distill)

  def adversary(disc_params, recon, averages):
    logits = [disc.apply({"params": disc_params}, x) for x in (unit, recon)]
    return gan.discriminator_loss(*logits, averages, lecam_weight=0.001, decay=0.999)

  image_loss = jax.jit(jax.value_and_grad(image_loss))
  gradient = jax.jit(jax.grad(pulled_back, has_aux=True))
  adversary = jax.jit(jax.grad(adversary, has_aux=True))
  host = lambda t: jax.tree.map(np.asarray, t)
  tables = golden_model.tokenizer_rules(dims)
  result = {}
  for step, weight in (("step0", 0.0), ("step200000", 0.1)):
    weight = jnp.float32(weight)
    grads, (recon, distill) = gradient(params, image_loss(recorded_recon, weight, frozen)[1])
    total = image_loss(recon, weight, frozen)[0] + distill
    result[step] = engine.to_torch(host(grads), tables), float(total), float(distill)
  # Two calls came before the recorded one on the same module.
  averages = gan.init_averages()
  for _ in range(2):
    grads, (averages, metrics) = adversary(frozen["discriminator"], recorded_recon, averages)
  grads = engine.to_torch({"discriminator": host(grads)}, disc_rules)
  result["discriminator"] = grads, float(metrics["discriminator_loss"])
  return result


def _recorded(golden):
  return json.loads((golden / "stage2_grad_norms_56.json").read_text())


@pytest.mark.parametrize("step", ["step0", "step200000"])
def test_losses_equal_the_recorded_ones(golden, run, step):
  _, total, distill = run[step]
  losses = json.loads((golden / "losses_56.json").read_text())
  parity.assert_parity("distillation", "golden losses_56", distill, losses["distill_loss_alone"])
  parity.assert_parity("stage-2 loss", "golden losses_56", total,
                       losses[f"stage2/{step}/generator"]["total_loss"])
  parity.assert_parity("stage-2 loss", "golden losses_56", total, _recorded(golden)[step]["loss"])


@pytest.mark.parametrize("step", ["step0", "step200000"])
def test_gradient_norms_of_every_parameter(golden, run, step):
  result, recorded = run[step][0], _recorded(golden)[step]["per_param"]
  assert set(recorded) == set(result)
  for name, norm in recorded.items():
    parity.assert_parity("stage-2 gradient norms", "golden stage2_grad_norms_56",
                         np.linalg.norm(result[name].astype(np.float64)), norm)


def test_discriminator_gradient_norms(golden, run):
  result, loss = run["discriminator"]
  recorded = _recorded(golden)["discriminator_step200000"]
  parity.assert_parity("discriminator loss", "golden stage2_grad_norms_56", loss, recorded["loss"])
  for name, norm in recorded["per_param"].items():
    parity.assert_parity("discriminator gradient norms", "golden stage2_grad_norms_56",
                         np.linalg.norm(result[f"discriminator.{name}"].astype(np.float64)), norm)


def test_recorded_gradient_arrays(golden, run):
  recorded = np.load(golden / "stage2_some_grads_56.npz")
  for name in recorded:
    gradient = run["step200000"][0][name.replace("/", ".")]
    parity.assert_recorded("stage-2 gradients", "golden stage2_some_grads_56", gradient, recorded[name])
