"""Pixel unshuffle and mlp1 equal transformers' InternVL."""

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
from unilip_jax.models import presets, projector

_TWIN = "transformers InternVLMultiModalProjector"
_PREFIX = "multi_modal_projector."


def test_channels_are_ordered_row_by_row_within_a_token():
  # Patch (row, column) of a 4×4 grid holds its own coordinates.
  grid = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(1, 16, 2)
  x = np.concatenate([np.full((1, 1, 2), -1), grid], axis=1).astype(np.float32)
  tokens = np.asarray(projector.pixel_unshuffle(x)).reshape(2, 2, 4, 2)
  for row in range(2):
    for column in range(2):
      corners = [(2 * row + r, 2 * column + c) for r in (0, 1) for c in (0, 1)]
      np.testing.assert_array_equal(tokens[row, column], corners)


def test_pixel_unshuffle_equals_transformers():
  x = np.random.default_rng(0).standard_normal((2, 1 + 64, 5)).astype(np.float32)
  grid = torch.tensor(x[:, 1:]).reshape(2, 8, 8, 5)
  expected = modeling_internvl.InternVLModel.pixel_shuffle(None, grid, 0.5).reshape(2, 16, 20)
  np.testing.assert_array_equal(projector.pixel_unshuffle(x), expected.numpy())


@pytest.mark.parametrize("patches", [9, 8, 20])
def test_grids_that_do_not_merge_are_refused(patches):
  with pytest.raises(ValueError, match="even side"):
    projector.pixel_unshuffle(jnp.zeros((1, 1 + patches, 4)))


@pytest.fixture(scope="module")
def tensors(golden):
  whole = safetensors_torch.load_file(golden / "pretrained/mllm_hf/model.safetensors")
  return {k.removeprefix(_PREFIX): v.float() for k, v in whole.items() if k.startswith(_PREFIX)}


@pytest.fixture(scope="module")
def params(tensors):
  arrays = {k: v.numpy() for k, v in tensors.items()}
  return engine.from_torch(arrays, internvit_convert.mlp1_rules_transformers("", ""), None)


def test_output_and_every_gradient_equal_transformers(tensors, params):
  twin = modeling_internvl.InternVLMultiModalProjector(transformers.InternVLConfig(
      vision_config=dict(hidden_size=64), text_config=dict(model_type="qwen2", hidden_size=48)))
  twin.load_state_dict(tensors)
  x = np.random.default_rng(0).standard_normal((2, 4, 256)).astype(np.float32)
  merged = torch.tensor(x, requires_grad=True)
  expected = twin(merged)
  weight = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  (expected * torch.tensor(weight)).sum().backward()

  def loss(p, x):
    out = projector.Mlp1(48, jnp.float32).apply({"params": p}, x)
    return (out * weight).sum(), out

  (_, out), (grads, x_grad) = jax.jit(
      jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
  parity.assert_parity("mlp1", _TWIN, out, expected.detach().numpy())
  parity.assert_parity("mlp1, input gradient", _TWIN, x_grad, merged.grad.numpy())
  twin_grads = tree.flatten(engine.from_torch(
      {name: p.grad.numpy() for name, p in twin.named_parameters()},
      internvit_convert.mlp1_rules_transformers("", ""), None))
  for path, gradient in tree.flatten(grads).items():
    parity.assert_parity("mlp1, gradients", _TWIN, gradient, twin_grads[path])


def test_the_recorded_run_tells_the_norms_epsilon(golden, monkeypatch):
  # 1e-6 would pass at the usual tolerance: error 3e-6 in place of 4e-7.
  run = np.load(golden / "tokenizer_56.npz")
  variables = {"params": golden_model.tokenizer_params(golden)["mlp1"]}

  def error():
    out = projector.Mlp1(48, jnp.float32).apply(variables, run["mlp1_in"])
    return parity.relative_error(out, run["mlp1_out"])

  ours = error()
  monkeypatch.setattr(projector, "_EPS", 1e-6)
  assert ours < error() / 3


def test_bfloat16_is_near_float32(params):
  x = np.random.default_rng(0).standard_normal((2, 4, 256)).astype(np.float32)
  full, half = (projector.Mlp1(48, dtype).apply({"params": params}, x)
                for dtype in (jnp.float32, jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  error = jnp.square(half.astype(jnp.float32) - full).mean() / jnp.square(full).mean()
  assert jnp.sqrt(error) < 0.01


@pytest.mark.parametrize(("size", "parameters"), [("1b", 4_482_816), ("3b", 8_662_016)])
def test_published_parameter_counts(size, parameters):
  dims = presets.get(size).tokenizer
  model = projector.Mlp1(dims.llm_width, jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, dims.vit.token_width)))
  assert tree.count(shapes["params"]) == parameters
