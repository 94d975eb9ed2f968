"""Chat about a tiled image at 1b gives the logits and tokens of transformers."""

import jax
import numpy as np
from PIL import Image
import pytest
import torch
import transformers

from benchmarks import torch_networks, torch_tokenizer
from tests import parity
from tests.fullsize import references
from unilip_jax.data import tiles as tiles_lib
from unilip_jax.models import qwen2

pytestmark = [pytest.mark.fullsize, pytest.mark.optimized]

_DIMS, _SLOT, _TOKENS = references.DIMS, 151_667, 4


@torch.inference_mode()
def test_chat_with_tiles():
  vision = references.randomise(torch_tokenizer.Vision(_DIMS.tokenizer))
  reference = references.randomise(transformers.Qwen2ForCausalLM(
      torch_networks.qwen2_config(_DIMS.llm, _DIMS.llm.depth)))
  coarse = np.random.default_rng(0).integers(0, 256, (6, 11, 3)).astype(np.uint8)
  tiles = tiles_lib.tiles(Image.fromarray(coarse).resize((900, 460)), 448, 12)
  assert tiles.shape == (3, 448, 448, 3), "two tiles and the thumbnail"
  slots = len(tiles) * _DIMS.tokenizer.image_tokens(448)
  tokens, _ = references.prompts(1)
  tokens = np.concatenate([tokens[:, :10], np.full((1, slots), _SLOT, np.int32), tokens[:, 10:]], 1)

  pixels, ids = references.tensors(tiles, tokens)
  features = torch.cat([vision(torch_tokenizer.imagenet(tile[None])) for tile in pixels], 1)
  x = reference.model.embed_tokens(ids).masked_scatter((ids == _SLOT)[..., None], features)
  expected, cache = [], None
  for _ in range(_TOKENS):
    out = reference(inputs_embeds=x, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    expected.append(out.logits[:, -1].numpy())
    x = reference.model.embed_tokens(torch.from_numpy(expected[-1].argmax(-1))[:, None])
  features = features.numpy()
  del cache, out, x
  params = references.weights(vision, "tokenizer.vision.", "vision_tower", "mlp1")
  params |= references.weights(reference, "llm.", "llm")

  model = references.model()
  value = jax.jit(model.pixel_features)(params, tiles[None])
  parity.assert_parity("image features of three tiles", "transformers", value, features)
  logits, kv = jax.jit(lambda p, f: model.answer_prefill(
      p, tokens, np.ones(tokens.shape, bool), _SLOT, f))(params, value)
  kv = qwen2.with_room(kv, _TOKENS)
  step = jax.jit(lambda p, token, c: model.answer_step(p, token, np.ones((1, 1), bool), c))
  for wanted in expected:
    logits = logits[:, :_DIMS.llm.vocab]
    parity.assert_parity("chat with tiles, logits", "transformers", logits, wanted)
    token = logits.argmax(-1)
    np.testing.assert_array_equal(token, wanted.argmax(-1))
    logits, kv = step(params, token[:, None], kv)
