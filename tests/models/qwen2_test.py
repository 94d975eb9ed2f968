"""Qwen2 equals transformers', decodes from its cache what a full pass gives, and looks back only."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests import parity
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.convert import qwen2 as qwen2_convert
from unilip_jax.models import presets, qwen2

_DIMS = presets.LlmDims(depth=3, width=48, heads=6, kv_heads=2, mlp=80, vocab=200)


@pytest.fixture(scope="module")
def reference():
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
      vocab_size=_DIMS.vocab, hidden_size=_DIMS.width, intermediate_size=_DIMS.mlp,
      num_hidden_layers=_DIMS.depth, num_attention_heads=_DIMS.heads,
      num_key_value_heads=_DIMS.kv_heads, rms_norm_eps=1e-6, rope_theta=1e6,
      initializer_range=0.3, tie_word_embeddings=False)
  model = transformers.Qwen2ForCausalLM(config).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      if name.endswith("bias") or "norm" in name:
        value.add_(0.3 * torch.randn(value.shape))
  return model


def _import(model, dims):
  tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
  return engine.from_torch(tensors, qwen2_convert.rules(dims, "model.", "", head="lm_head.weight"),
                          None)


@pytest.fixture(scope="module")
def params(reference):
  return _import(reference, _DIMS)


def _model(**fields):
  return qwen2.Qwen2(_DIMS, jnp.float32, **fields)


def _tokens(batch=2, length=11):
  return np.random.default_rng(0).integers(0, _DIMS.vocab, (batch, length)).astype(np.int32)


def _run(params, tokens, mask=None, cache=None):
  return _forward(params, tokens, np.ones(tokens.shape, bool) if mask is None else mask, cache)


@jax.jit
def _forward(params, tokens, mask, cache):
  model, variables = _model(), {"params": params}
  x = model.apply(variables, tokens, method="embed")
  hidden, cache = model.apply(variables, x, mask, cache)
  return model.apply(variables, hidden, method="logits"), cache


def test_logits_and_gradients_equal_transformers(reference, params):
  tokens = _tokens()
  weights = np.random.default_rng(1).standard_normal((*tokens.shape, _DIMS.vocab), np.float32)

  def loss(params):
    logits = _run(params, tokens)[0][..., :_DIMS.vocab]
    return (logits * weights).sum(), logits

  grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
  expected = reference(torch.from_numpy(tokens).long()).logits
  parity.assert_parity("Qwen2", "transformers", logits, expected.detach().numpy())
  (expected * torch.from_numpy(weights)).sum().backward()
  table = qwen2_convert.rules(_DIMS, "model.", "", head="lm_head.weight")
  result = engine.to_torch(jax.device_get(grads), table)
  parity.assert_gradients("Qwen2, gradients", "transformers", result,
                          {name: value.grad.numpy() for name, value in reference.named_parameters()})


def test_tied_head_equals_transformers(reference):
  config = transformers.Qwen2Config(**(reference.config.to_dict() | {"tie_word_embeddings": True}))
  torch.manual_seed(1)
  tied = transformers.Qwen2ForCausalLM(config).eval()
  dims = dataclasses.replace(_DIMS, tied=True)
  tensors = {k: v.detach().numpy() for k, v in tied.state_dict().items() if k != "lm_head.weight"}
  params = engine.from_torch(tensors, qwen2_convert.rules(dims, "model.", "", head=""), None)
  model, tokens = qwen2.Qwen2(dims, jnp.float32), _tokens()

  @jax.jit
  def run(params):
    x = model.apply({"params": params}, tokens, method="embed")
    hidden, _ = model.apply({"params": params}, x, np.ones(tokens.shape, bool))
    return model.apply({"params": params}, hidden, method="logits")

  logits = run(params)
  expected = tied(torch.from_numpy(tokens).long()).logits.detach().numpy()
  parity.assert_parity("Qwen2, tied head", "transformers", logits[..., :_DIMS.vocab], expected)


def test_unused_vocabulary_rows_are_never_chosen(params):
  logits, _ = _run(params, _tokens())
  assert logits.shape[-1] == 256
  assert np.isneginf(logits[..., _DIMS.vocab:]).all()


@pytest.mark.parametrize("padded", [False, True], ids=["full prompt", "right-padded prompt"])
def test_decoding_from_the_cache_equals_a_full_pass(params, padded):
  tokens, start = _tokens(), 6
  mask = np.ones(tokens.shape, bool)
  if padded:
    mask[1, start - 2:start] = False  # row 1 has a shorter prompt
  logits, cache = _run(params, tokens[:, :start], mask[:, :start])
  cache = qwen2.with_room(cache, tokens.shape[1] - start)
  steps = [logits]
  for i in range(start, tokens.shape[1]):
    logits, cache = _run(params, tokens[:, i:i + 1], cache=cache)
    steps.append(logits)
  decoded = np.concatenate(steps, axis=1)
  for row in range(2):
    keep = mask[row]
    full, _ = _run(params, tokens[row:row + 1, keep])
    np.testing.assert_allclose(
        decoded[row, keep, :_DIMS.vocab], full[0, :, :_DIMS.vocab], rtol=1e-4, atol=1e-4)


def test_appending_to_a_prefix_equals_a_full_pass(params):
  tokens, start = _tokens(), 7
  _, cache = _run(params, tokens[:, :start])
  behind, grown = _run(params, tokens[:, start:], cache=cache)
  full, _ = _run(params, tokens)
  np.testing.assert_allclose(behind[..., :_DIMS.vocab], full[:, start:, :_DIMS.vocab], rtol=1e-4,
                             atol=1e-4)
  chex.assert_equal_shape([grown.mask, tokens])


def test_a_token_gets_no_gradient_from_earlier_outputs(params):
  model, x = _model(), np.random.default_rng(2).standard_normal((1, 9, 48)).astype(np.float32)

  def early(x):
    return model.apply({"params": params}, x, np.ones((1, 9), bool))[0][:, :5].sum()

  gradient = jax.jit(jax.grad(early))(x)
  assert np.abs(gradient[:, :5]).min() > 0
  np.testing.assert_array_equal(gradient[:, 5:], 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_change_nothing(params, side):
  tokens = _tokens()
  full, _ = _run(params, tokens)
  pads = np.random.default_rng(3).integers(0, _DIMS.vocab, (2, 4)).astype(np.int32)
  parts, masks = [tokens, pads], [np.ones(tokens.shape, bool), np.zeros(pads.shape, bool)]
  if side == "left":
    parts, masks = parts[::-1], masks[::-1]
  padded, _ = _run(params, np.concatenate(parts, 1), np.concatenate(masks, 1))
  padded = padded[:, 4:] if side == "left" else padded[:, :-4]
  np.testing.assert_allclose(
      padded[..., :_DIMS.vocab], full[..., :_DIMS.vocab], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", ["1b", "3b"])
@pytest.mark.parametrize("vocab", [151_674, 151_677])
def test_published_parameter_counts(size, vocab):
  dims = dataclasses.replace(presets.get(size).llm, vocab=vocab)
  shapes = jax.eval_shape(
      lambda: qwen2.Qwen2(dims, jnp.float32).init(
          jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method="everything"))["params"]
  body = tree.count({k: v for k, v in shapes.items() if k != "head"})
  published = {("1b", 151_674): 493_798_016, ("1b", 151_677): 493_800_704,
               ("3b", 151_674): 1_543_311_872, ("3b", 151_677): 1_543_316_480}
  assert body - (dims.rows - vocab) * dims.width == published[size, vocab]
