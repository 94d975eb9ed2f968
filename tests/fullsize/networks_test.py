"""Each network at the published 1b dimensions equals that of transformers or diffusers, float32."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from torch import nn
import transformers

from benchmarks import torch_networks, torch_tokenizer
from tests import golden_model, parity
from tests.fullsize import references
from unilip_jax.models import dcae, layers
from unilip_jax.models.vision import internvit
from unilip_jax.ops import image as image_ops

pytestmark = [pytest.mark.fullsize, pytest.mark.optimized]

_DIMS = references.DIMS


@torch.inference_mode()
def test_vit_and_mlp1_at_448():
  reference = references.randomise(torch_tokenizer.Vision(_DIMS.tokenizer))
  image = np.random.default_rng(0).random((1, 448, 448, 3), np.float32)
  pixels = torch_tokenizer.normalise(*references.tensors(np.moveaxis(image, -1, 1).copy()))
  last = reference.vit(pixels).last_hidden_state.numpy()
  expected = reference(pixels).numpy()
  params = references.weights(reference, "tokenizer.vision.", "vision_tower", "mlp1")
  tower = internvit.InternVit(_DIMS.tokenizer.vit, np.float32, "none")
  value = jax.jit(lambda p, x: tower.apply(
      {"params": p}, image_ops.imagenet_from_unit(x), method="hidden_states"))(
          params["vision_tower"], image)
  parity.assert_parity("InternViT-300M, 448 px", "transformers", value, last)
  model = references.model()
  value = jax.jit(lambda p, x: model.features(p, x[None]))(params, image)
  parity.assert_parity("InternViT-300M + mlp1, 448 px", "transformers", value, expected)


@torch.inference_mode()
def test_llm_over_prompts_and_queries():
  """JAX runs the prompts first, then the queries on their keys and values; PyTorch runs both at once."""
  reference = references.randomise(transformers.Qwen2ForCausalLM(
      torch_networks.qwen2_config(_DIMS.llm, _DIMS.llm.depth)))
  tokens, mask = references.prompts(2)
  queries = references.normal(1, 2, _DIMS.connector.queries, _DIMS.llm.width)
  valid = np.concatenate([mask, np.ones(queries.shape[:2], bool)], axis=1)
  ids, seen, after = references.tensors(tokens, valid, queries)
  x = torch.cat([reference.model.embed_tokens(ids), after], 1)
  positions = (seen.long().cumsum(1) - 1).clamp(min=0)
  states = reference.model(
      inputs_embeds=x, attention_mask=seen.long(), position_ids=positions).last_hidden_state
  logits = reference.lm_head(states[:, -1]).numpy()
  states = states.numpy()
  params = references.weights(reference, "llm.", "llm")["llm"]
  llm = references.model().llm

  @jax.jit
  def run(params):
    variables = {"params": params}
    prompt, cache = llm.apply(variables, llm.apply(variables, tokens, method="embed"), mask)
    hidden, _ = llm.apply(variables, queries, np.ones(queries.shape[:2], bool), cache)
    return prompt, hidden, llm.apply(variables, hidden[:, -1], method="logits")

  prompt, hidden, head = run(params)
  parity.assert_parity("Qwen2.5-0.5B, prompts", "transformers", np.asarray(prompt)[mask],
                       states[:, :references.PROMPT][mask])
  parity.assert_parity("Qwen2.5-0.5B, queries", "transformers", hidden,
                       states[:, references.PROMPT:])
  parity.assert_parity("Qwen2.5-0.5B, logits", "transformers", head[:, :_DIMS.llm.vocab], logits)


@torch.inference_mode()
def test_connector_and_projector():
  reference = transformers.Qwen2Model(
      torch_networks.qwen2_config(_DIMS.llm, _DIMS.connector.depth))
  reference.embed_tokens = None
  references.randomise(reference)
  projector = references.randomise(nn.Linear(_DIMS.llm.width, _DIMS.dit.caption_width))
  _, mask = references.prompts(2)
  mask = np.pad(mask, ((0, 0), (0, _DIMS.connector.queries)), constant_values=True)
  states = references.normal(0, *mask.shape, _DIMS.llm.width)
  x, seen = references.tensors(states, mask)
  expected = projector(reference(
      inputs_embeds=x, position_ids=(seen.long().cumsum(1) - 1).clamp(min=0), use_cache=False,
      attention_mask={"full_attention": seen[:, None, None]}).last_hidden_state).numpy()
  params = references.weights(reference, "connector.", "connector") | references.weights(
      projector, "projector.", "projector")
  model = references.model()

  @jax.jit
  def run(params):
    out, _ = model.connector.apply({"params": params["connector"]}, states, mask)
    return layers.Dense(_DIMS.dit.caption_width, np.float32).apply(
        {"params": params["projector"]}, out)

  parity.assert_parity("connector and projector", "transformers", np.asarray(run(params))[mask],
                       expected[mask])


@torch.inference_mode()
def test_dit():
  reference = references.randomise(torch_networks.make_dit(_DIMS.dit))
  _, mask = references.prompts(2)
  mask = np.pad(mask, ((0, 0), (0, _DIMS.connector.queries)), constant_values=True)
  latents = references.normal(0, 2, 16, 16, 32)
  context = references.normal(1, *mask.shape, _DIMS.dit.caption_width)
  time = np.array([999.0, 123.0], np.float32)
  x, c, t, m = references.tensors(np.moveaxis(latents, -1, 1).copy(), context, time, mask)
  expected = reference(x, c, t, encoder_attention_mask=m, return_dict=False)[0].numpy()
  params = references.weights(reference, "dit.", "dit")
  model = references.model()
  value = jax.jit(model.velocity)(params, latents, time, context, mask)
  parity.assert_parity("SANA 0.6B", "diffusers", value, golden_model.nhwc(expected))


@torch.inference_mode()
def test_decoder_to_512():
  d = _DIMS.tokenizer.decoder
  reference = diffusers.AutoencoderDC(
      latent_channels=d.latent_channels, attention_head_dim=d.head_dim, decoder_block_types=d.blocks,
      decoder_block_out_channels=d.channels, decoder_layers_per_block=d.layers,
      decoder_qkv_multiscales=d.qkv_multiscales, upsample_block_type=d.resample,
      decoder_norm_types=d.norms, decoder_act_fns=d.acts,
      encoder_block_out_channels=(8,) * len(d.channels), encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
      encoder_block_types=("ResBlock",) * len(d.channels),
      encoder_qkv_multiscales=((),) * len(d.channels)).decoder
  references.randomise(reference)
  latents = references.normal(0, 1, 16, 16, 32)
  x, = references.tensors(np.moveaxis(latents, -1, 1).copy())
  expected = reference(x).numpy()
  params = references.weights(reference, "tokenizer.decoder.", "decoder")["decoder"]
  decoder = dcae.Decoder(d, np.float32, "none")
  value = jax.jit(lambda p, x: decoder.apply({"params": p}, x))(params, latents)
  assert value.shape == (1, 512, 512, 3)
  parity.assert_parity("DC-AE decoder, 512 px", "diffusers", value, golden_model.nhwc(expected))
