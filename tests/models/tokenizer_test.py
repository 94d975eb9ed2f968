"""The assembled tokenizer equals the recorded official runs, every intermediate."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import golden_model, micro, parity
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.convert import internvit as internvit_convert
from unilip_jax.convert import unilip as unilip_convert
from unilip_jax.models import presets, tokenizer
from unilip_jax.models.vision import internvit
from unilip_jax.ops import image as image_ops
from unilip_jax.optim import param_table

_NO_DECAY = ("ln", "bias", "norm", "gamma", "embed")


@pytest.fixture(scope="module")
def model_and_params(golden):
  model = tokenizer.Tokenizer(golden_model.tokenizer_dims(golden), dtype=jnp.float32)
  return model, golden_model.tokenizer_params(golden)


def _unit(image_u8):
  return image_ops.unit_from_pixels(jnp.asarray(image_u8))


@pytest.fixture(scope="module")
def apply(model_and_params):
  """One compiled call per image size: outputs, `embeddings` and `last` of the tower, and `decoded`."""
  model, params = model_and_params

  @jax.jit
  def run(params, image):
    out, seen = model.apply(
        {"params": params}, image, mutable=["intermediates"],
        capture_intermediates=lambda module, name: module.name == "decoder" and name == "__call__")
    seen = seen["intermediates"]
    tower = {name: seen["vision_tower"][name][0] for name in ("embeddings", "last")}
    return out | tower | {"decoded": seen["decoder"]["__call__"][0]}

  return functools.partial(run, params)


def test_every_intermediate_at_56px(golden, apply):
  run = np.load(golden / "tokenizer_56.npz")
  reference = "golden tokenizer_56"
  image = _unit(run["image_u8"])
  parity.assert_recorded("pixel range", reference, image_ops.imagenet_from_unit(image),
                       golden_model.nhwc(run["pixel_values"]))
  out = apply(image)
  parity.assert_recorded("InternViT embedding", reference, out["embeddings"], run["vit_embeddings"])
  parity.assert_parity("InternViT", reference, out["last"], run["vit_last"])
  merged = internvit.pixel_unshuffle(out["last"][:, 1:], 4, 4).reshape(2, 4, -1)
  parity.assert_recorded("pixel unshuffle", reference, merged, run["mlp1_in"])
  parity.assert_parity("mlp1", reference, out["features"], run["mlp1_out"])
  parity.assert_parity("latent head", reference, out["latents"], golden_model.nhwc(run["z"]))
  parity.assert_recorded("DC-AE decoder", reference, out["decoded"],
                       golden_model.nhwc(run["decoder_raw_64"]))
  parity.assert_parity(
      "tokenizer", reference, out["reconstruction"], golden_model.nhwc(run["recon"]))


def test_stage_1_is_internvls_tower_with_a_new_head(golden, model_and_params):
  model, _ = model_and_params
  internvl = safetensors_numpy.load_file(golden / "pretrained/mllm/model.safetensors")
  head = safetensors_numpy.load_file(golden / "ckpt/tiny_stage1_down.safetensors")
  params = engine.from_torch(
      internvl | head,
      [*internvit_convert.rules(model.dims.vit, "vision_model.", "vision_tower/"),
       *internvit_convert.mlp1_rules("mlp1.", "mlp1/"),
       *unilip_convert.latent_head_rules(3, "", "latent_head/")],
      None, skip=[("language_model", "no part of the tokenizer")])
  image = _unit(np.load(golden / "tokenizer_56.npz")["image_u8"])
  run = np.load(golden / "tokenizer_56_stage1.npz")
  reference = "golden tokenizer_56_stage1"
  latents, features = jax.jit(
      lambda x: model.apply({"params": params}, x, method="encode"))(image)
  parity.assert_parity("mlp1", reference, features, run["mlp1_out"])
  parity.assert_parity("tokenizer latents", reference, latents, golden_model.nhwc(run["z"]))


@pytest.mark.parametrize("size", [112, 224])
def test_reconstruction_at_other_sizes(golden, apply, size):
  run = np.load(golden / f"tokenizer_{size}.npz")
  image = _unit(run["image_u8"])
  out = apply(image)
  reference = f"golden tokenizer_{size}"
  parity.assert_recorded("tokenizer latents", reference, out["latents"], golden_model.nhwc(run["z"]))
  parity.assert_recorded("mlp1", reference, out["features"], run["mlp1_out"])
  result = np.asarray(out["reconstruction"])
  if size == 112:
    parity.assert_recorded("InternViT", reference, out["last"], run["vit_last"])
    parity.assert_recorded("tokenizer", reference, result, golden_model.nhwc(run["recon"]))
    return
  parity.assert_recorded("InternViT embedding, positions interpolated", reference,
                       out["embeddings"], run["vit_embeddings"])
  parity.assert_recorded("tokenizer", reference, result, golden_model.nhwc(run["recon_sub4"]))
  recorded = golden_model.nhwc(run["recon_f16"])  # at more pixels
  assert parity.relative_error(parity.like(result, recorded), recorded) < 2**-11  # float16's rounding


def test_the_padded_protocol_aligns_corners(golden, model_and_params, apply):
  model, params = model_and_params
  image = _unit(np.load(golden / "tokenizer_56.npz")["image_u8"])

  aligned = jax.jit(lambda params, image: model.apply(
      {"params": params}, image, align_corners=True))(params, image)["reconstruction"]
  out = apply(image)
  raw, plain = out["decoded"], out["reconstruction"]
  corners = (slice(None), np.array([0, 0, -1, -1]), np.array([0, -1, 0, -1]))
  np.testing.assert_allclose(aligned[corners], raw[corners], atol=1e-5)
  assert np.abs(plain[corners] - raw[corners]).max() > 1e-3


def test_no_decay_rule_gives_the_recorded_optimizer_groups(golden, model_and_params):
  model, params = model_and_params

  groups = json.loads((golden / "tokenizer_stage2_optimizer_groups.json").read_text())
  columns = param_table.resolve(params, (("^(vision_tower|mlp1)/", {"lr": 0.1}),), _NO_DECAY)
  paths = golden_model.paths_by_torch_name(model.dims)
  recorded = {paths[name]: (group["lr"], group["weight_decay"])
              for group in groups for name in group["params"]}
  assert set(recorded) == set(columns)
  for path, (lr, decay) in recorded.items():
    np.testing.assert_allclose(columns[path].lr * 1e-4, lr, rtol=1e-9)
    assert columns[path].decay == (decay > 0), path


def test_bfloat16_stays_near_float32(golden, model_and_params, apply):
  model, params = model_and_params
  image = _unit(np.load(golden / "tokenizer_56.npz")["image_u8"])
  full = apply(image)
  low = model.clone(dtype=jnp.bfloat16)
  half = jax.jit(low.apply)({"params": params}, image)
  chex.assert_type(half["reconstruction"], jnp.float32)  # the resize at the end
  chex.assert_type([half["features"], half["latents"]], jnp.bfloat16)
  for name in half:
    exact = full[name]
    error = jnp.square(half[name].astype(jnp.float32) - exact).mean() / jnp.square(exact).mean()
    assert jnp.sqrt(error) < 0.03, name


def test_remat_policies_change_no_gradient():
  dims = micro.preset().tokenizer
  rng = np.random.default_rng(0)
  image = rng.random((1, micro.IMAGE_SIZE, micro.IMAGE_SIZE, 3), np.float32)
  model = tokenizer.Tokenizer(dims, jnp.float32)
  params = jax.tree.map(
      lambda s: 0.2 * rng.standard_normal(s.shape, np.float32),
      jax.eval_shape(model.init, jax.random.key(0), image))

  def gradient(policy):
    m = model.clone(remat_vit=policy, remat_decoder=policy)
    return tree.flatten(jax.jit(jax.grad(
        lambda p: jnp.square(m.apply(p, image)["reconstruction"]).mean()))(params))

  plain, *others = (gradient(policy) for policy in ("none", "dots", "full"))
  for path, value in plain.items():
    for other in others:
      assert parity.relative_error(other[path], value) < parity.RTOL, path


@pytest.mark.parametrize(("size", "mlp1", "head"), [
    ("1b", 4_482_816, 4_859_200), ("3b", 8_662_016, 14_227_520)])
def test_published_parameter_counts(size, mlp1, head):
  model = tokenizer.Tokenizer(presets.get(size).tokenizer, dtype=jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 56, 56, 3)))["params"]
  assert {name: tree.count(part) for name, part in shapes.items()} == {
      "vision_tower": 304_012_288, "mlp1": mlp1, "latent_head": head, "decoder": 159_223_171}


def test_a_rectangle_keeps_its_layout(model_and_params):
  model, params = model_and_params
  image = np.random.default_rng(0).random((1, 56, 112, 3), np.float32)
  out = jax.jit(lambda x: model.apply({"params": params}, x))(image)
  chex.assert_shape([out["reconstruction"], out["latents"]], [image.shape, (1, 2, 4, 32)])
  # Tokens go row by row: the latent of a token is that of its feature, wherever it is.
  alone = model.apply({"params": params}, out["features"][:, 5:6], method="latents")
  np.testing.assert_allclose(out["latents"][0, 1, 1], alone[0, 0, 0], rtol=1e-4, atol=1e-5)
