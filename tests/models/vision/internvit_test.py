"""InternViT equals transformers' with the same weights, values and gradients, at any grid."""

import json

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
from unilip_jax.models.vision import internvit
from unilip_jax.ops import image as image_ops

_TWIN = "transformers InternVLVisionModel"
_PREFIX = "vision_tower."


@pytest.fixture(scope="module")
def dims(golden):
  return golden_model.tokenizer_dims(golden).vit


@pytest.fixture(scope="module")
def tensors(golden):
  """The tower's tensors in transformers' layout, as stored."""
  whole = safetensors_torch.load_file(golden / "pretrained/mllm_hf/model.safetensors")
  return {k: v for k, v in whole.items() if k.startswith(_PREFIX)}


@pytest.fixture(scope="module")
def twin(golden, tensors):
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
def test_output_and_every_gradient_equal_transformers(dims, twin, params, height, width):
  image = _image(height, width)
  planes = torch.tensor(np.moveaxis(image, -1, 1).copy(), requires_grad=True)
  expected = twin(planes).last_hidden_state
  weight = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  twin.zero_grad()
  (expected * torch.tensor(weight)).sum().backward()
  model = internvit.InternVit(dims, jnp.float32, "none")

  def loss(p, x):
    out = model.apply({"params": p}, x)
    return (out * weight).sum(), out

  (_, out), (grads, image_grad) = jax.jit(
      jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, image)
  parity.assert_parity("InternViT", _TWIN, out, expected.detach().numpy())
  parity.assert_parity("InternViT, input gradient", _TWIN, np.moveaxis(image_grad, -1, 1),
                       planes.grad.numpy())
  twin_grads = tree.flatten(engine.from_torch(
      {name: p.grad.numpy() for name, p in twin.named_parameters()},
      internvit_convert.rules_transformers(dims, "", ""), None))
  for path, gradient in tree.flatten(grads).items():
    parity.assert_parity("InternViT, gradients", _TWIN, gradient, twin_grads[path])


def test_names_of_transformers_come_back_bit_for_bit(dims, tensors, params):
  back = engine.to_torch(params, internvit_convert.rules_transformers(dims, _PREFIX, ""), "bfloat16")
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(
        back[name].view(np.uint16), tensor.contiguous().view(torch.uint16).numpy(), err_msg=name)


def test_joined_qkv_is_in_the_order_of_the_original_layout(golden, dims, params):
  whole = safetensors_torch.load_file(golden / "pretrained/mllm/model.safetensors")
  original = {k: v.float().numpy() for k, v in whole.items() if k.startswith("vision_model.")}
  table = internvit_convert.rules(dims, "vision_model.", "")
  jax.tree.map(np.testing.assert_array_equal, engine.from_torch(original, table, None), params)


def test_scanned_layers_equal_the_layers_in_turn(dims, params):
  image = _image(56, 56)
  model = internvit.InternVit(dims, jnp.float32, "none")
  out, seen = model.apply({"params": params}, image, mutable=["intermediates"])
  x = seen["intermediates"]["embeddings"][0]
  for i in range(dims.depth):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
    x, _ = internvit.Layer(dims, jnp.float32).apply({"params": one}, x)
  np.testing.assert_allclose(out, x, rtol=1e-5, atol=1e-5)


def test_the_recorded_run_tells_the_norms_epsilon(golden, dims, monkeypatch):
  # 1e-5 would pass at the usual tolerance: error 1e-5 in place of 5e-7.
  run = np.load(golden / "tokenizer_56.npz")
  image = image_ops.imagenet_from_unit(image_ops.unit_from_pixels(run["image_u8"]))
  tower = {"params": golden_model.tokenizer_params(golden)["vision_tower"]}
  model = internvit.InternVit(dims, jnp.float32, "none")
  ours = parity.relative_error(model.apply(tower, image), run["vit_last"])
  monkeypatch.setattr(internvit, "_EPS", 1e-5)
  assert ours < parity.relative_error(model.apply(tower, image), run["vit_last"]) / 5


def test_positions_stay_at_their_own_grid_and_the_class_token_always(params):
  positions = params["pos_embed"]
  assert internvit.resize_positions(positions, 8, 8, 8) is positions
  larger = internvit.resize_positions(positions, 8, 16, 12)
  assert larger.shape == (1, 1 + 16 * 12, 64)
  np.testing.assert_array_equal(larger[:, 0], positions[:, 0])


def test_bfloat16_is_near_float32(dims, params):
  image = _image(56, 56)
  full, half = (internvit.InternVit(dims, dtype, "none").apply({"params": params}, image)
                for dtype in (jnp.float32, jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  error = jnp.square(half.astype(jnp.float32) - full).mean() / jnp.square(full).mean()
  assert jnp.sqrt(error) < 0.02  # bfloat16 rounds at 0.4 %, through six residual branches


def test_published_parameter_count_and_layer_scale():
  model = internvit.InternVit(presets.get("1b").tokenizer.vit, jnp.float32, "none")
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 448, 448, 3)))["params"]
  assert tree.count(shapes) == 304_012_288
  tiny = presets.get("tiny").tokenizer.vit
  start = internvit.InternVit(tiny, jnp.float32, "none").init(
      jax.random.key(0), jnp.zeros((1, 112, 112, 3)))["params"]
  assert (start["layers"]["ls1"] == np.float32(tiny.layer_scale_init)).all()


def test_images_that_are_not_whole_patches_are_refused(dims):
  model = internvit.InternVit(dims, jnp.float32, "none")
  with pytest.raises(ValueError, match="56×50 is not a multiple of the patch side 14"):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 56, 50, 3)))
