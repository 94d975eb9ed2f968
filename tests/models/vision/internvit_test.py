"""InternViT equals transformers' with the same weights, values and gradients, at any grid."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import torch as safetensors_torch
import torch
import transformers
from transformers.models.internvl import modeling_internvl

from tests import golden_model, parity
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.convert import internvit as internvit_convert
from unilip_jax.models import presets
from unilip_jax.models.vision import base, internvit
from unilip_jax.ops import backend
from unilip_jax.ops import image as image_ops

_REFERENCE = "transformers InternVLVisionModel"
_PREFIX = "vision_tower."


@pytest.fixture(scope="module")
def dims(golden):
  return golden_model.tokenizer_dims(golden).vit


@pytest.fixture(scope="module")
def tensors(golden):
  """The tower's tensors in transformers' layout, as stored."""
  stored = safetensors_torch.load_file(golden / "pretrained/mllm_hf/model.safetensors")
  return {k: v for k, v in stored.items() if k.startswith(_PREFIX)}


@pytest.fixture(scope="module")
def reference(golden, tensors):
  config = json.loads((golden / "pretrained/mllm_hf/config.json").read_text())["vision_config"]
  model = modeling_internvl.InternVLVisionModel(transformers.InternVLVisionConfig(**config))
  model.load_state_dict({k.removeprefix(_PREFIX): v.float() for k, v in tensors.items()})
  return model.eval()


@pytest.fixture(scope="module")
def params(dims, tensors):
  arrays = {k: v.float().numpy() for k, v in tensors.items()}
  return engine.from_torch(arrays, internvit_convert.rules_transformers(dims, _PREFIX, ""), None)


def _image(height, width, batch=2):
  return np.random.default_rng(0).standard_normal((batch, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(112, 112), (56, 56), (84, 140)])
def test_output_and_every_gradient_equal_transformers(dims, reference, params, height, width):
  _assert_equal_to_transformers(dims, reference, params, height, width)


def test_the_formulation_of_tpus_equals_transformers(dims, reference, params):
  with backend.planning("tpu", "TPU v5 lite"):  # what is traced runs on this machine's CPU
    _assert_equal_to_transformers(dims, reference, params, 56, 56)


def _assert_equal_to_transformers(dims, reference, params, height, width):
  image = _image(height, width)
  planes = torch.tensor(np.moveaxis(image, -1, 1).copy(), requires_grad=True)
  expected = reference(planes).last_hidden_state
  weight = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  reference.zero_grad()
  (expected * torch.tensor(weight)).sum().backward()
  model = internvit.InternVit(dims, jnp.float32, "none")

  def loss(p, x):
    out = model.apply({"params": p}, x, method="hidden_states")
    return (out * weight).sum(), out

  (_, out), (grads, image_grad) = jax.jit(
      jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, image)
  parity.assert_parity("InternViT", _REFERENCE, out, expected.detach().numpy())
  parity.assert_parity("InternViT, input gradient", _REFERENCE, np.moveaxis(image_grad, -1, 1),
                       planes.grad.numpy())
  expected_grads = tree.flatten(engine.from_torch(
      {name: p.grad.numpy() for name, p in reference.named_parameters()},
      internvit_convert.rules_transformers(dims, "", ""), None))
  for path, gradient in tree.flatten(grads).items():
    parity.assert_parity("InternViT, gradients", _REFERENCE, gradient, expected_grads[path])


def test_names_of_transformers_come_back_bit_for_bit(dims, tensors, params):
  back = engine.to_torch(params, internvit_convert.rules_transformers(dims, _PREFIX, ""), "bfloat16")
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(
        back[name].view(np.uint16), tensor.contiguous().view(torch.uint16).numpy(), err_msg=name)


def test_joined_qkv_is_in_the_order_of_the_original_layout(golden, dims, params):
  stored = safetensors_torch.load_file(golden / "pretrained/mllm/model.safetensors")
  original = {k: v.float().numpy() for k, v in stored.items() if k.startswith("vision_model.")}
  table = internvit_convert.rules(dims, "vision_model.", "")
  chex.assert_trees_all_equal(engine.from_torch(original, table, None), params)


def test_scanned_layers_equal_the_layers_in_turn(dims, params):
  image = _image(56, 56)
  model = internvit.InternVit(dims, jnp.float32, "none")
  out, seen = jax.jit(lambda p: model.apply(
      {"params": p}, image, method="hidden_states", mutable=["intermediates"]))(params)
  x = seen["intermediates"]["embeddings"][0]
  layer = jax.jit(lambda p, x: internvit.Layer(dims, jnp.float32).apply({"params": p}, x)[0])
  for i in range(dims.depth):
    x = layer(jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]), x)
  np.testing.assert_allclose(out, x, rtol=1e-5, atol=1e-5)


def test_the_recorded_run_tells_the_norms_epsilon(golden, dims, monkeypatch):
  # 1e-5 would pass at the usual tolerance: error 1e-5 instead of 5e-7.
  run = np.load(golden / "tokenizer_56.npz")
  image = image_ops.imagenet_from_unit(image_ops.unit_from_pixels(run["image_u8"]))
  tower = {"params": golden_model.tokenizer_params(golden)["vision_tower"]}
  model = internvit.InternVit(dims, jnp.float32, "none")
  error = lambda: parity.relative_error(
      jax.jit(lambda p: model.apply(p, image, method="hidden_states"))(tower), run["vit_last"])
  published = error()
  monkeypatch.setattr(internvit, "_EPS", 1e-5)
  assert published < error() / 5


def test_positions_stay_at_their_own_grid_and_the_class_token_always(params):
  positions = params["pos_embed"]
  assert internvit.resize_positions(positions, 8, 8, 8) is positions
  larger = internvit.resize_positions(positions, 8, 16, 12)
  chex.assert_shape(larger, (1, 1 + 16 * 12, 64))
  np.testing.assert_array_equal(larger[:, 0], positions[:, 0])


def test_bfloat16_is_near_float32(dims, params):
  image = _image(56, 56)
  full, half = (
      jax.jit(lambda p, dtype=dtype: internvit.InternVit(dims, dtype, "none").apply(
          {"params": p}, image, method="hidden_states"))(params)
      for dtype in (jnp.float32, jnp.bfloat16))
  chex.assert_type(half, jnp.bfloat16)
  error = jnp.square(half.astype(jnp.float32) - full).mean() / jnp.square(full).mean()
  assert jnp.sqrt(error) < 0.02  # bfloat16 rounds at 0.4 %, through six residual branches


def test_published_parameter_count_and_layer_scale():
  model = internvit.InternVit(presets.get("1b").tokenizer.vit, jnp.float32, "none")
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 448, 448, 3)))["params"]
  assert tree.count(shapes) == 304_012_288
  tiny = presets.get("tiny").tokenizer.vit
  start = jax.jit(internvit.InternVit(tiny, jnp.float32, "none").init)(
      jax.random.key(0), jnp.zeros((1, 112, 112, 3)))["params"]
  assert (start["layers"]["ls1"] == np.float32(tiny.layer_scale_init)).all()


@pytest.mark.parametrize(("height", "width"), [(56, 50), (42, 42), (28, 42)])
def test_images_that_do_not_divide_into_tokens_are_refused(dims, height, width):
  model = base.make_tower(dims, jnp.float32, "none")
  message = f"image {height}×{width} is not a multiple of 28 pixels, the side of one token"
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, height, width, 3)))


def test_tokens_are_the_patches_of_the_normalised_image_without_the_class_token(dims, params):
  unit = np.random.default_rng(0).random((2, 56, 84, 3), np.float32)
  tower = base.make_tower(dims, jnp.float32, "none")
  assert (tower.pixels_per_token, tower.width) == (28, 4 * dims.width)
  tokens = jax.jit(lambda p: tower.apply({"params": p}, unit))(params)
  chex.assert_shape(tokens, (2, *tower.grid(unit), tower.width))
  patches = jax.jit(lambda p: tower.apply(
      {"params": p}, image_ops.imagenet_from_unit(unit), method="hidden_states"))(params)
  # Token (1, 2) is patches (2, 4), (2, 5), (3, 4), (3, 5) of the 4 × 6 grid behind the class token.
  corners = patches[:, 1 + np.array([2 * 6 + 4, 2 * 6 + 5, 3 * 6 + 4, 3 * 6 + 5])]
  np.testing.assert_allclose(tokens[:, 1, 2], corners.reshape(2, -1), rtol=1e-5, atol=1e-5)


def test_channels_are_ordered_row_by_row_within_a_token():
  # Patch (row, column) of a 4×4 grid holds its own coordinates.
  x = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(1, 16, 2)
  tokens = np.asarray(internvit.pixel_unshuffle(x, 4, 4)).reshape(2, 2, 4, 2)
  for row in range(2):
    for column in range(2):
      corners = [(2 * row + r, 2 * column + c) for r in (0, 1) for c in (0, 1)]
      np.testing.assert_array_equal(tokens[row, column], corners)


def test_pixel_unshuffle_equals_transformers():
  x = np.random.default_rng(0).standard_normal((2, 64, 5)).astype(np.float32)
  expected = modeling_internvl.InternVLModel.pixel_shuffle(None, torch.tensor(x).reshape(2, 8, 8, 5), 0.5)
  np.testing.assert_array_equal(internvit.pixel_unshuffle(x, 8, 8), expected.numpy())


@pytest.mark.parametrize("size", presets.SIZES)
def test_dimensions_come_back_from_json_as_before_there_were_kinds(size):
  dims = presets.get(size).tokenizer
  stored = json.loads(json.dumps(presets.to_json(dims)))
  assert "kind" not in stored["vit"]
  assert presets.from_json(presets.TokenizerDims, stored) == dims
