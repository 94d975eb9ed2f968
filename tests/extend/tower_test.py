"""The example of a second vision tower: SigLIP equals transformers', and the package uses it by name."""

import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests import micro, parity
from tests.extend import siglip, siglip_names, siglip_plugin
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.data import batch as batch_lib
from unilip_jax.models import presets, tokenizer
from unilip_jax.models.vision import base

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_REFERENCE = "transformers SiglipVisionModel"
_DIMS = siglip.SiglipDims(depth=2, width=32, heads=4, mlp=48, patch=8, image_size=32)


@pytest.fixture(autouse=True, scope="module")
def _registered():
  siglip_plugin.register()


@pytest.fixture(scope="module")
def reference():
  torch.manual_seed(0)
  model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(
      hidden_size=_DIMS.width, intermediate_size=_DIMS.mlp, num_hidden_layers=_DIMS.depth,
      num_attention_heads=_DIMS.heads, image_size=_DIMS.image_size, patch_size=_DIMS.patch)).eval()
  with torch.no_grad():
    for value in model.parameters():  # away from the start's zeros and ones
      value.add_(0.05 * torch.randn(value.shape))
  return model


def _convert(tensors):
  return engine.from_torch(
      {k: v.detach().numpy() for k, v in tensors}, siglip_names.rules(_DIMS, "", ""), None,
      skip=siglip_names.SKIP)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64)])  # its own grid, and another
def test_output_and_every_gradient_equal_transformers(reference, height, width):
  unit = np.random.default_rng(0).random((2, height, width, 3), np.float32)
  h, w = height // _DIMS.patch, width // _DIMS.patch
  weight = np.random.default_rng(1).standard_normal((2, h // 2, w // 2, 128)).astype(np.float32)
  x = torch.tensor(unit, requires_grad=True)
  states = reference(
      (2 * x - 1).permute(0, 3, 1, 2), interpolate_pos_encoding=True).last_hidden_state
  expected = states.reshape(2, h // 2, 2, w // 2, 2, -1).transpose(2, 3).reshape(weight.shape)
  reference.zero_grad()
  (expected * torch.tensor(weight)).sum().backward()
  tower = base.make_tower(_DIMS, jnp.float32, "none")

  def loss(params, unit):
    tokens = tower.apply({"params": params}, unit)
    return (tokens * weight).sum(), tokens

  (_, tokens), (grads, unit_grad) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
      _convert(reference.state_dict().items()), unit)
  chex.assert_shape(tokens, (2, *tower.grid(unit), tower.width))
  parity.assert_parity("SigLIP", _REFERENCE, tokens, expected.detach().numpy())
  parity.assert_parity("SigLIP, input gradient", _REFERENCE, unit_grad, x.grad.numpy())
  wanted = _convert((k, v.grad) for k, v in reference.named_parameters() if v.grad is not None)
  parity.assert_gradients("SigLIP, gradients", _REFERENCE, tree.flatten(grads), tree.flatten(wanted))


def test_names_come_back_bit_for_bit(reference):
  tensors = {k: v.detach().numpy() for k, v in reference.state_dict().items()
             if not k.startswith("head.")}
  table = siglip_names.rules(_DIMS, "", "")
  chex.assert_trees_all_equal(engine.to_torch(_convert(reference.state_dict().items()), table), tensors)


def test_a_tokenizer_reconstructs_with_the_tower_of_its_dimensions():
  preset = micro.preset()
  tiny = presets.get("tiny_siglip").tokenizer
  dims = presets.TokenizerDims(_DIMS, preset.tokenizer.llm_width, 2, preset.tokenizer.decoder)
  assert isinstance(base.make_tower(tiny.vit, jnp.float32, "none"), siglip.Siglip)
  model = tokenizer.Tokenizer(dims, jnp.float32)
  unit = np.random.default_rng(0).random((1, 32, 48, 3), np.float32)
  assert model.side == 16

  shapes = jax.eval_shape(model.init, jax.random.key(0), unit)
  assert shapes["params"]["mlp1"]["fc1"]["kernel"].shape == (128, dims.llm_width)
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), shapes)
  out = jax.jit(model.apply)(params, unit)
  chex.assert_shape(out["latents"], (1, 2, 3, 32))
  chex.assert_shape(out["reconstruction"], unit.shape)
  chex.assert_tree_all_finite(out)


def test_model_json_names_the_kind_and_gives_the_dimensions_back():
  dims = presets.get("tiny_siglip").tokenizer
  stored = json.loads(json.dumps(presets.to_json(dims)))
  assert stored["vit"]["kind"] == "siglip"
  assert presets.from_json(presets.TokenizerDims, stored) == dims
  with pytest.raises(ValueError, match="unknown vision_tower 'sigclip'; known: internvit, siglip"):
    presets.from_json(base.VisionDims, stored["vit"] | {"kind": "sigclip"})


@pytest.mark.parametrize("stage", ["stage2", "gen2"])
def test_reconstruction_and_generation_train_with_it(stage):
  make = micro.config if stage == "stage2" else micro.text_config
  config = make(stage, size="tiny_siglip", image_size=64)
  task = tasks.make(config)
  state = jax.eval_shape(task.make_state, task.module_shapes, np.uint32(0))
  batch = batch_lib.synthetic(task.batch_spec(config.batch_size))
  after, _ = jax.eval_shape(task.train_step, state, batch)
  chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
  assert "cls_embed" not in task.module_shapes["vision_tower"]
