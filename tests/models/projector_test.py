"""mlp1 equals transformers' InternVL."""

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
from unilip_jax.models import presets, projector
from unilip_jax.models.vision import internvit

_REFERENCE = "transformers InternVLMultiModalProjector"
_PREFIX = "multi_modal_projector."


@pytest.fixture(scope="module")
def tensors(golden):
  stored = safetensors_torch.load_file(golden / "pretrained/mllm_hf/model.safetensors")
  return {k.removeprefix(_PREFIX): v.float() for k, v in stored.items() if k.startswith(_PREFIX)}


@pytest.fixture(scope="module")
def params(tensors):
  arrays = {k: v.numpy() for k, v in tensors.items()}
  return engine.from_torch(arrays, internvit_convert.mlp1_rules_transformers("", ""), None)


def test_output_and_every_gradient_equal_transformers(tensors, params):
  reference = modeling_internvl.InternVLMultiModalProjector(transformers.InternVLConfig(
      vision_config=dict(hidden_size=64), text_config=dict(model_type="qwen2", hidden_size=48)))
  reference.load_state_dict(tensors)
  x = np.random.default_rng(0).standard_normal((2, 4, 256)).astype(np.float32)
  merged = torch.tensor(x, requires_grad=True)
  expected = reference(merged)
  weight = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  (expected * torch.tensor(weight)).sum().backward()

  def loss(p, x):
    out = projector.Mlp1(48, jnp.float32).apply({"params": p}, x)
    return (out * weight).sum(), out

  (_, out), (grads, x_grad) = jax.jit(
      jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
  parity.assert_parity("mlp1", _REFERENCE, out, expected.detach().numpy())
  parity.assert_parity("mlp1, input gradient", _REFERENCE, x_grad, merged.grad.numpy())
  expected_grads = tree.flatten(engine.from_torch(
      {name: p.grad.numpy() for name, p in reference.named_parameters()},
      internvit_convert.mlp1_rules_transformers("", ""), None))
  for path, gradient in tree.flatten(grads).items():
    parity.assert_parity("mlp1, gradients", _REFERENCE, gradient, expected_grads[path])


def test_the_recorded_run_tells_the_norms_epsilon(golden, monkeypatch):
  # 1e-6 would pass at the usual tolerance: error 3e-6 instead of 4e-7.
  run = np.load(golden / "tokenizer_56.npz")
  variables = {"params": golden_model.tokenizer_params(golden)["mlp1"]}
  tokens = internvit.pixel_unshuffle(run["vit_last"][:, 1:], 4, 4).reshape(2, 4, -1)

  def error():
    out = projector.Mlp1(48, jnp.float32).apply(variables, tokens)
    return parity.relative_error(out, run["mlp1_out"])

  result = error()
  monkeypatch.setattr(projector, "_EPS", 1e-6)
  assert result < error() / 3


def test_bfloat16_is_near_float32(params):
  x = np.random.default_rng(0).standard_normal((2, 4, 256)).astype(np.float32)
  full, half = (projector.Mlp1(48, dtype).apply({"params": params}, x)
                for dtype in (jnp.float32, jnp.bfloat16))
  chex.assert_type(half, jnp.bfloat16)
  error = jnp.square(half.astype(jnp.float32) - full).mean() / jnp.square(full).mean()
  assert jnp.sqrt(error) < 0.01


@pytest.mark.parametrize(("size", "parameters"), [("1b", 4_482_816), ("3b", 8_662_016)])
def test_published_parameter_counts(size, parameters):
  dims = presets.get(size).tokenizer
  model = projector.Mlp1(dims.llm_width, jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, dims.vit.token_width)))
  assert tree.count(shapes["params"]) == parameters
