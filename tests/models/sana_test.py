"""SANA equals the recorded run and diffusers, with and without positions and qk-norm, with gradients."""

import dataclasses
import functools
import json

import chex
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch

from tests import golden_model, parity
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.convert import sana as sana_convert
from unilip_jax.models import presets, sana
from unilip_jax.ops import backend


@pytest.fixture(scope="module")
def recorded(golden):
  folder = golden / "pretrained/dit/transformer"
  dims = sana_convert.from_config(
      json.loads((folder / "config.json").read_text()), positions=True)
  tensors = {}
  for file in folder.glob("*.safetensors"):
    tensors |= safetensors_numpy.load_file(file)
  params = engine.from_torch(tensors, sana_convert.rules(dims, "", ""), None)
  return dims, params, np.load(golden / "component_dit.npz")


def _apply(dims, params, latents, time, context, mask):
  return _run(dims, params, golden_model.nhwc(latents), np.asarray(time, np.float32), context, mask)


@functools.partial(jax.jit, static_argnums=0)
def _run(dims, params, *inputs):
  return sana.Sana(dims, jnp.float32).apply({"params": params}, *inputs)


@pytest.mark.parametrize(("positions", "latents", "out"), [
    (True, "latents", "out"), (False, "latents", "out_without_pos_embed"),
    (True, "latents_6x6", "out_6x6")])
def test_output_equals_the_recorded_one(recorded, positions, latents, out):
  dims, params, arrays = recorded
  dims = dataclasses.replace(dims, positions=positions)
  result = _apply(dims, params, arrays[latents], arrays["timesteps"], arrays["context"],
                arrays["context_mask"])
  parity.assert_recorded("SANA", "golden component_dit", result, golden_model.nhwc(arrays[out]))


def test_positions_equal_the_recorded_ones(recorded):
  dims, _, arrays = recorded
  parity.assert_recorded("SANA positions", "golden component_dit",
                       sana.position_embedding(4, 4, dims.width, dims.grid),
                       arrays["pos_embed"][0])


def _reference(qk_norm):
  torch.manual_seed(0)
  reference = diffusers.SanaTransformer2DModel(
      in_channels=32, out_channels=32, num_attention_heads=6, attention_head_dim=8, num_layers=3,
      num_cross_attention_heads=4, cross_attention_head_dim=12, cross_attention_dim=48,
      caption_channels=20, mlp_ratio=2.5, sample_size=4, patch_size=1, qk_norm=qk_norm,
      interpolation_scale=None).eval()
  with torch.no_grad():
    for value in reference.parameters():
      value.add_(0.05 * torch.randn(value.shape))
  dims = sana_convert.from_config(dict(reference.config), positions=False)
  return reference, dims


@pytest.mark.parametrize("qk_norm", [None, "rms_norm_across_heads"])
def test_output_and_gradients_equal_diffusers(qk_norm):
  _assert_equal_to_diffusers(qk_norm)


def test_the_formulation_of_tpus_equals_diffusers(monkeypatch):
  monkeypatch.setattr(sana, "_TILE", 2)  # the examples of this test
  with backend.planning("tpu", "TPU v5 lite"):  # what is traced runs on this machine's CPU
    _assert_equal_to_diffusers(None)


def _assert_equal_to_diffusers(qk_norm):
  reference, dims = _reference(qk_norm)
  table = sana_convert.rules(dims, "", "")
  params = engine.from_torch(
      {k: v.detach().numpy() for k, v in reference.state_dict().items()}, table, None)
  rng = np.random.default_rng(0)
  latents, weights = rng.standard_normal((2, 2, 32, 5, 4)).astype(np.float32)
  context = rng.standard_normal((2, 7, 20)).astype(np.float32)
  mask = np.arange(7)[None] < np.array([[7], [4]])
  time = np.array([999.0, 12.5], np.float32)

  def loss(params):
    out = _apply(dims, params, latents, time, context, mask)
    return (out * golden_model.nhwc(weights)).sum(), out

  grads, result = jax.jit(jax.grad(loss, has_aux=True))(params)
  expected = reference(torch.from_numpy(latents), torch.from_numpy(context), torch.from_numpy(time),
                encoder_attention_mask=torch.from_numpy(mask), return_dict=False)[0]
  name = "SANA, qk-norm" if qk_norm else "SANA"
  parity.assert_parity(name, "diffusers", result, golden_model.nhwc(expected.detach().numpy()))
  cross_kv = sana.precompute_cross_kv(dims, jnp.float32, params, context)
  chex.assert_shape([cross_kv.keys, cross_kv.values], (3, 2, 7, 48))
  parity.assert_parity(name, "diffusers", _apply(dims, params, latents, time, cross_kv, mask),
                       golden_model.nhwc(expected.detach().numpy()))
  (expected * torch.from_numpy(weights)).sum().backward()
  exported = engine.to_torch(jax.device_get(grads), table)
  parity.assert_gradients(f"{name}, gradients", "diffusers", exported,
                          {key: value.grad.numpy() for key, value in reference.named_parameters()})


def test_pads_of_the_condition_change_nothing(recorded):
  dims, params, arrays = recorded
  mask = arrays["context_mask"]
  other = np.where(mask[..., None], arrays["context"], 100.0).astype(np.float32)
  runs = [_apply(dims, params, arrays["latents"], arrays["timesteps"], c, mask)
          for c in (arrays["context"], other)]
  np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(("size", "count"), [("1b", 591_747_872), ("3b", 1_604_462_752)])
def test_published_parameter_counts(size, count):
  dims = presets.get(size).dit
  shapes = jax.eval_shape(
      sana.Sana(dims, jnp.float32).init, jax.random.key(0), jnp.zeros((1, 2, 2, 32)),
      jnp.zeros((1,)), jnp.zeros((1, 3, dims.caption_width)), jnp.ones((1, 3), bool))
  assert tree.count(shapes["params"]) == count


def test_a_config_of_another_network_is_refused_by_entry():
  with pytest.raises(ValueError, match=r"patch_size=2 \(only 1\).*num_layers is absent"):
    sana_convert.from_config({"patch_size": 2}, positions=False)
