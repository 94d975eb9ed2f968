"""The assembled InternVL equals transformers': logits and every gradient of images and text."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import torch as safetensors_torch
import torch
import transformers

from tests import golden_model, parity
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.convert import internvit as internvit_convert
from unilip_jax.convert import qwen2 as qwen2_convert
from unilip_jax.models import unilip
from unilip_jax.ops import image as image_ops

_REFERENCE = "transformers InternVLForConditionalGeneration"
_FOLDER = "pretrained/mllm_hf"


@pytest.fixture(scope="module")
def reference(golden):
  config = json.loads((golden / _FOLDER / "config.json").read_text())
  config["text_config"]["tie_word_embeddings"] = False
  config["tie_word_embeddings"] = False
  model = transformers.InternVLForConditionalGeneration(transformers.InternVLConfig(**config))
  stored = safetensors_torch.load_file(golden / _FOLDER / "model.safetensors")
  tensors = {}
  for name, value in stored.items():
    name = name.removeprefix("language_model.") if "lm_head" in name else (
        f"model.{name.replace('language_model.model.', 'language_model.')}")
    tensors[name] = value.float()
  model.load_state_dict(tensors)
  return model.eval()


def _table(dims):
  head = "lm_head.weight"
  return [*internvit_convert.rules_transformers(dims.tokenizer.vit, "model.vision_tower.",
                                               "vision_tower/"),
          *internvit_convert.mlp1_rules_transformers("model.multi_modal_projector.", "mlp1/"),
          *qwen2_convert.rules(dims.llm, "model.language_model.", "llm/", head=head)]


def test_logits_and_every_gradient_equal_transformers(golden, reference):
  dims = golden_model.unilip_dims(golden)
  config = reference.config
  vocabulary = config.text_config.vocab_size
  dims = dataclasses.replace(dims, llm=dataclasses.replace(dims.llm, vocab=vocabulary))
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 1, 112, 112, 3)).astype(np.uint8)
  tokens = rng.integers(0, 250, (2, 30)).astype(np.int32)
  tokens[:, 4:20] = config.image_token_id
  mask = np.ones(tokens.shape, bool)
  mask[1, 25:] = False  # pads on the right
  imagenet = np.asarray(image_ops.imagenet_from_unit(image_ops.unit_from_pixels(pixels[:, 0])))
  logits_torch = reference(
      input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long(),
      pixel_values=torch.tensor(np.moveaxis(imagenet, -1, 1).copy())).logits
  weight = rng.standard_normal(logits_torch.shape).astype(np.float32) * mask[..., None]
  reference.zero_grad()
  (logits_torch * torch.tensor(weight)).sum().backward()

  model = unilip.Unilip(dims, jnp.float32)
  convert = lambda tensors: engine.from_torch(tensors, _table(dims), None)
  params = convert({k: v.detach().numpy() for k, v in reference.state_dict().items()})

  def loss(params):
    hidden, _ = model.hidden(
        params, tokens, mask, config.image_token_id, model.pixel_features(params, pixels))
    logits = model.llm.apply({"params": params["llm"]}, hidden, method="logits")
    return (logits[..., :vocabulary] * weight).sum(), logits[..., :vocabulary]

  (_, result), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  parity.assert_parity("InternVL, logits", _REFERENCE, result[mask], logits_torch.detach().numpy()[mask])
  zero = lambda p: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
  expected = convert({k: zero(v) for k, v in reference.named_parameters()})
  parity.assert_gradients("InternVL, gradients", _REFERENCE, tree.flatten(grads), tree.flatten(expected))
