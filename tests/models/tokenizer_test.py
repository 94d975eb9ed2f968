"""The assembled tokenizer equals the recorded official runs, every intermediate."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import golden_model, parity
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.convert import internvit as internvit_convert
from unilip_jax.convert import unilip as unilip_convert
from unilip_jax.models import presets, projector, tokenizer
from unilip_jax.models.vision import internvit
from unilip_jax.ops import image as image_ops
from unilip_jax.optim import param_table

_NO_DECAY = ("ln", "bias", "norm", "gamma", "embed")


@pytest.fixture(scope="module")
def model_and_params(golden):
  model = tokenizer.Tokenizer(golden_model.tokenizer_dims(golden), dtype=jnp.float32)
  return model, golden_model.tokenizer_params(golden)


def _imagenet(image_u8):
  return image_ops.imagenet_from_unit(image_ops.unit_from_pixels(jnp.asarray(image_u8)))


@pytest.fixture(scope="module")
def apply(model_and_params):
  """One compiled call per image size."""
  model, params = model_and_params
  return jax.jit(lambda image: model.apply({"params": params}, image))


def test_every_intermediate_at_56px(golden, model_and_params, apply):
  model, params = model_and_params
  run = np.load(golden / "tokenizer_56.npz")
  twin = "golden tokenizer_56"
  image = _imagenet(run["image_u8"])
  parity.assert_parity("pixel range", twin, image, golden_model.nhwc(run["pixel_values"]))
  vit = internvit.InternVit(model.dims.vit, jnp.float32, "none")
  last, seen = vit.apply({"params": params["vision_tower"]}, image, mutable=["intermediates"])
  parity.assert_parity("InternViT embedding", twin, seen["intermediates"]["embeddings"][0],
                       run["vit_embeddings"])
  parity.assert_parity("InternViT", twin, last, run["vit_last"])
  merged = projector.pixel_unshuffle(last)
  parity.assert_parity("pixel unshuffle", twin, merged, run["mlp1_in"])
  out = apply(image)
  parity.assert_parity("mlp1", twin, out["features"], run["mlp1_out"])
  parity.assert_parity("latent head", twin, out["latents"], golden_model.nhwc(run["z"]))
  raw = jax.jit(lambda z: model.bind({"params": params}).decoder(z))(out["latents"])
  parity.assert_parity("DC-AE decoder", twin, raw, golden_model.nhwc(run["decoder_raw_64"]))
  parity.assert_parity(
      "tokenizer", twin, out["reconstruction"], golden_model.nhwc(run["recon"]))


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
  image = _imagenet(np.load(golden / "tokenizer_56.npz")["image_u8"])
  run = np.load(golden / "tokenizer_56_stage1.npz")
  twin = "golden tokenizer_56_stage1"
  latents, features = jax.jit(
      lambda x: model.apply({"params": params}, x, method="encode"))(image)
  parity.assert_parity("mlp1", twin, features, run["mlp1_out"])
  parity.assert_parity("tokenizer latents", twin, latents, golden_model.nhwc(run["z"]))


@pytest.mark.parametrize("size", [112, 224])
def test_reconstruction_at_other_sizes(golden, model_and_params, apply, size):
  model, params = model_and_params
  run = np.load(golden / f"tokenizer_{size}.npz")
  image = _imagenet(run["image_u8"])
  out = apply(image)
  twin = f"golden tokenizer_{size}"
  parity.assert_parity("tokenizer latents", twin, out["latents"], golden_model.nhwc(run["z"]))
  parity.assert_parity("mlp1", twin, out["features"], run["mlp1_out"])
  ours = np.asarray(out["reconstruction"])
  vit = internvit.InternVit(model.dims.vit, jnp.float32, "none")
  last, seen = vit.apply({"params": params["vision_tower"]}, image, mutable=["intermediates"])
  if size == 112:
    parity.assert_parity("InternViT", twin, last, run["vit_last"])
    parity.assert_parity("tokenizer", twin, ours, golden_model.nhwc(run["recon"]))
    return
  parity.assert_parity("InternViT embedding, positions interpolated", twin,
                       seen["intermediates"]["embeddings"][0], run["vit_embeddings"])
  # Recorded whole in float16, and on every fourth pixel in float32.
  parity.assert_parity("tokenizer", twin, ours[:, ::4, ::4], golden_model.nhwc(run["recon_sub4"]))
  assert parity.relative_error(ours, golden_model.nhwc(run["recon_f16"])) < 2**-11  # its rounding


def test_the_padded_protocol_aligns_corners(golden, model_and_params, apply):
  model, params = model_and_params
  image = _imagenet(np.load(golden / "tokenizer_56.npz")["image_u8"])

  @jax.jit
  def run(image):
    bound = model.bind({"params": params})
    out = bound(image, align_corners=True)
    return bound.decoder(out["latents"]), out["reconstruction"]

  raw, aligned = run(image)
  plain = apply(image)["reconstruction"]
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
  image = _imagenet(np.load(golden / "tokenizer_56.npz")["image_u8"])
  full = apply(image)
  low = model.clone(dtype=jnp.bfloat16)
  half = jax.jit(lambda x: low.apply({"params": params}, x))(image)
  assert half["reconstruction"].dtype == jnp.float32  # the resize at the end
  assert half["features"].dtype == half["latents"].dtype == jnp.bfloat16
  for name, exact in full.items():
    error = jnp.square(half[name].astype(jnp.float32) - exact).mean() / jnp.square(exact).mean()
    assert jnp.sqrt(error) < 0.03, name


@pytest.mark.quick
@pytest.mark.parametrize("policy", ["dots", "full"])
def test_remat_policies_change_no_gradient(golden, model_and_params, policy):
  model, params = model_and_params
  image = _imagenet(np.load(golden / "tokenizer_56.npz")["image_u8"])

  def gradient(m):
    return jax.jit(jax.grad(
        lambda p: jnp.square(m.apply({"params": p}, image)["reconstruction"]).mean()))(params)

  plain = gradient(model)
  again = gradient(model.clone(remat_vit=policy, remat_decoder=policy))
  for path, value in tree.flatten(plain).items():
    assert parity.relative_error(tree.flatten(again)[path], value) < parity.RTOL, path


@pytest.mark.parametrize(("size", "mlp1", "head"), [
    ("1b", 4_482_816, 4_859_200), ("3b", 8_662_016, 14_227_520)])
def test_published_parameter_counts(size, mlp1, head):
  model = tokenizer.Tokenizer(presets.get(size).tokenizer, dtype=jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 56, 56, 3)))["params"]
  assert {name: tree.count(part) for name, part in shapes.items()} == {
      "vision_tower": 304_012_288, "mlp1": mlp1, "latent_head": head, "decoder": 159_223_171}


@pytest.mark.parametrize(("height", "width", "message"), [
    (50, 50, "not a multiple of the patch side"), (42, 42, "even sides"), (28, 42, "even sides")])
def test_images_that_are_not_whole_tokens_are_refused(height, width, message):
  model = tokenizer.Tokenizer(presets.get("tiny").tokenizer, dtype=jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, height, width, 3)))


@pytest.mark.quick
def test_a_rectangle_keeps_its_layout(model_and_params):
  model, params = model_and_params
  image = np.random.default_rng(0).standard_normal((1, 56, 112, 3)).astype(np.float32)
  out = jax.jit(lambda x: model.apply({"params": params}, x))(image)
  assert out["reconstruction"].shape == image.shape
  assert out["latents"].shape == (1, 2, 4, 32)
  # Tokens go row by row: the latent of a token is that of its feature, wherever it stands.
  alone = model.apply({"params": params}, out["features"][:, 5:6], method="latents")
  np.testing.assert_allclose(out["latents"][0, 1, 1], alone[0, 0, 0], rtol=1e-4, atol=1e-5)
