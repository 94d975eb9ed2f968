"""The assembled tokenizer equals the recorded official runs, every intermediate."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_model, parity
from unilip_jax import presets, rules
from unilip_jax.models import internvit, latent_head, projector, tokenizer
from unilip_jax.ops import image as image_ops

_NO_DECAY = ("ln", "bias", "norm", "gamma", "embed")


@pytest.fixture(scope="module")
def model_and_params(golden):
  model = tokenizer.Tokenizer(golden_model.tokenizer_dims(golden), dtype=jnp.float32)
  return model, golden_model.tokenizer_params(golden)


def _imagenet(image_u8):
  return image_ops.imagenet_from_unit(image_ops.unit_from_pixels(jnp.asarray(image_u8)))


def test_every_intermediate_at_56px(golden, model_and_params):
  model, params = model_and_params
  run = np.load(golden / "tokenizer_56.npz")
  twin = "golden tokenizer_56"
  image = _imagenet(run["image_u8"])
  parity.assert_parity("pixel range", twin, image, golden_model.nhwc(run["pixel_values"]))
  vit = internvit.InternVit(model.dims.vit, jnp.float32, "none")
  tower = {"params": params["vision_tower"]}
  last, seen = vit.apply(tower, image, mutable=["intermediates"])
  parity.assert_parity("InternViT embedding", twin, seen["intermediates"]["embeddings"][0],
                       run["vit_embeddings"])
  parity.assert_parity("InternViT", twin, last, run["vit_last"])
  merged = projector.pixel_unshuffle(last)
  parity.assert_parity("pixel unshuffle", twin, merged, run["mlp1_in"])
  features = projector.Mlp1(48, jnp.float32).apply({"params": params["mlp1"]}, merged)
  parity.assert_parity("mlp1", twin, features, run["mlp1_out"])
  head = latent_head.LatentHead(3, 32, 0.02, jnp.float32)
  latents = head.apply({"params": params["latent_head"]}, features)
  parity.assert_parity("latent head", twin, latents, golden_model.nhwc(run["z"]))
  out = jax.jit(lambda x: model.apply({"params": params}, x))(image)
  parity.assert_parity(
      "tokenizer", twin, out["reconstruction"], golden_model.nhwc(run["recon"]))


@pytest.mark.parametrize("size", [112, 224])
def test_reconstruction_at_other_sizes(golden, model_and_params, size):
  model, params = model_and_params
  run = np.load(golden / f"tokenizer_{size}.npz")
  out = jax.jit(lambda x: model.apply({"params": params}, x))(_imagenet(run["image_u8"]))
  twin = f"golden tokenizer_{size}"
  parity.assert_parity("tokenizer latents", twin, out["latents"], golden_model.nhwc(run["z"]))
  parity.assert_parity("mlp1", twin, out["features"], run["mlp1_out"])
  ours = np.asarray(out["reconstruction"])
  if size == 112:
    parity.assert_parity("tokenizer", twin, ours, golden_model.nhwc(run["recon"]))
  else:  # recorded on every fourth pixel in float32
    parity.assert_parity(
        "tokenizer", twin, ours[:, ::4, ::4], golden_model.nhwc(run["recon_sub4"]))


def test_no_decay_rule_gives_the_recorded_optimizer_groups(golden, model_and_params):
  model, params = model_and_params

  groups = json.loads((golden / "tokenizer_stage2_optimizer_groups.json").read_text())
  columns = rules.resolve(params, (("^(vision_tower|mlp1)/", {"lr": 0.1}),), _NO_DECAY)
  paths = golden_model.paths_by_torch_name(model.dims)
  recorded = {paths[name]: (group["lr"], group["weight_decay"])
              for group in groups for name in group["params"]}
  assert set(recorded) == set(columns)
  for path, (lr, decay) in recorded.items():
    np.testing.assert_allclose(columns[path].lr * 1e-4, lr, rtol=1e-9)
    assert columns[path].decay == (decay > 0), path


def test_bfloat16_stays_near_float32(golden, model_and_params):
  model, params = model_and_params
  image = _imagenet(np.load(golden / "tokenizer_56.npz")["image_u8"])
  full, half = (
      jax.jit(lambda x, m=m: m.apply({"params": params}, x)["reconstruction"])(image)
      for m in (model, model.clone(dtype=jnp.bfloat16)))
  assert half.dtype == jnp.float32  # the resize at the end
  assert jnp.sqrt(jnp.square(half - full).mean() / jnp.square(full).mean()) < 0.03


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_remat_policies_change_no_gradient(golden, model_and_params, policy):
  model, params = model_and_params
  image = _imagenet(np.load(golden / "tokenizer_56.npz")["image_u8"])

  def gradient(m):
    return jax.jit(jax.grad(
        lambda p: jnp.square(m.apply({"params": p}, image)["reconstruction"]).mean()))(params)

  plain = gradient(model)
  again = gradient(model.clone(remat_vit=policy, remat_decoder=policy))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), plain, again)


@pytest.mark.parametrize(("size", "width"), [("1b", 896), ("3b", 1536)])
def test_new_parts_start_as_published(size, width):
  del size
  head = latent_head.LatentHead(3, 32, 0.02, jnp.float32)
  params = head.init(jax.random.key(0), jnp.zeros((1, 4, width // 8)))["params"]
  kernel = params["down_blocks"]["layers"]["fc1"]["kernel"]
  np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)
  assert not params["down_mlp"]["fc1"]["bias"].any()
  assert (params["down_mlp"]["norm"]["scale"] == 1).all()


def test_odd_grids_are_refused():
  with pytest.raises(ValueError, match="even side"):
    projector.pixel_unshuffle(jnp.zeros((1, 1 + 9, 4)))
  model = tokenizer.Tokenizer(presets.get("tiny").tokenizer, dtype=jnp.float32)
  with pytest.raises(ValueError, match="not a multiple of the patch side"):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 50, 50, 3)))
