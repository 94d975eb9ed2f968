"""Attention equals PyTorch's, masks hide, and the fused kernel is chosen only where it runs."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import parity
from unilip_jax.ops import attention
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib

_REFERENCE = "torch scaled_dot_product_attention"


def _inputs(queries=7, keys=7, heads=4, kv_heads=4):
  rng = np.random.default_rng(0)
  shapes = ((2, queries, heads, 16), (2, keys, kv_heads, 16), (2, keys, kv_heads, 16))
  return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def _padding(keys):
  mask = np.ones((2, 1, 1, keys), bool)
  mask[1, ..., keys - 3:] = False
  return mask


_CASES = {
    "plain": (_inputs(), {}),
    "causal": (_inputs(), dict(causal=True)),
    "padding mask": (_inputs(), dict(mask=_padding(7))),
    "grouped queries": (_inputs(heads=6, kv_heads=2), dict(causal=True)),
    "more keys than queries": (_inputs(queries=3, keys=9), dict(mask=_padding(9))),
}


@pytest.mark.parametrize("case", list(_CASES))
def test_output_and_gradients_equal_pytorch(case):
  arrays, options = _CASES[case]
  weight = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(np.float32)
  tensors = [torch.tensor(np.moveaxis(x, 1, 2).copy(), requires_grad=True) for x in arrays]
  mask = torch.tensor(options["mask"]) if "mask" in options else None
  expected = torch.nn.functional.scaled_dot_product_attention(
      *tensors, attn_mask=mask, is_causal=options.get("causal", False), enable_gqa=True)
  (expected * torch.tensor(np.moveaxis(weight, 1, 2).copy())).sum().backward()

  def loss(*qkv):
    out = attention.attention(*qkv, **options)
    return (out * weight).sum(), out

  (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
  parity.assert_parity("attention", f"{_REFERENCE} ({case})", np.moveaxis(out, 1, 2),
                       expected.detach().numpy())
  for gradient, reference in zip(grads, tensors):
    parity.assert_parity("attention, gradients", f"{_REFERENCE} ({case})", np.moveaxis(gradient, 1, 2),
                         reference.grad.numpy())


def test_hidden_keys_have_no_influence():
  q, k, v = _inputs()
  mask = _padding(7)
  hidden = ~mask[:, 0, 0, :, None, None]
  plain = attention.attention(q, k, v, mask=mask)
  changed = attention.attention(
      q, np.where(hidden, 5.0, k), np.where(hidden, -9.0, v), mask=mask)
  np.testing.assert_array_equal(plain, changed)


def test_half_precision_has_float32_scores():
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in _inputs())
  # Scores near 1000 differ by steps of 4 in bfloat16, which would change the softmax beyond all.
  q = q.at[..., 0].set(64.0)
  k = k.at[..., 0].set(64.0)
  out = attention.attention(q, k, v)
  chex.assert_type(out, jnp.bfloat16)
  exact = attention.attention(*(x.astype(jnp.float32) for x in (q, k, v)))
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.02)


@pytest.mark.parametrize(("dtype", "head_dim", "lengths", "masked", "fits"), [
    (jnp.bfloat16, 64, (1025, 1025), False, True),  # InternViT at 448 px
    (jnp.float16, 128, (512, 512), True, True),
    (jnp.bfloat16, 64, (1025, 1025), True, False),  # odd and masked: no gradient
    (jnp.bfloat16, 64, (256, 768), True, True),  # gen2's queries after an instruction
    (jnp.bfloat16, 64, (256, 576), True, False),  # masked, half a tile of keys left over
    (jnp.bfloat16, 64, (256, 576), False, True),
    (jnp.bfloat16, 12, (8, 8), False, False),
    (jnp.bfloat16, 256, (8, 8), False, False),
    (jnp.float32, 64, (8, 8), False, False)])
def test_fused_kernel_only_where_it_runs(dtype, head_dim, lengths, masked, fits):
  assert attention.fits_cudnn(jnp.dtype(dtype), head_dim, lengths, masked) == fits


def test_a_cpu_never_asks_for_the_fused_kernel():
  assert jax.default_backend() != "cpu" or not attention._device_fuses()


def test_forward_derivatives_never_ask_for_the_fused_kernel(monkeypatch):
  monkeypatch.setattr(attention, "_device_fuses", lambda: True)
  implementations = []

  def attend(q, k, v, *, implementation, **options):
    del k, v, options
    implementations.append(implementation)
    return q

  monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
  q = jnp.ones((1, 8, 2, 64), jnp.bfloat16)
  attention.attention(q, q, q)
  with attention.forward_mode():
    attention.attention(q, q, q)
  attention.attention(q, q, q)
  assert implementations == ["cudnn", "xla", "cudnn"]


@pytest.fixture
def by_xla(monkeypatch):
  """Takes the route of a GPU; XLA computes what cuDNN would. Returns the arguments it was given."""
  given, attend = [], jax.nn.dot_product_attention

  def dot_product_attention(*qkv, implementation, **options):
    assert implementation == "cudnn"
    given.append(options)
    return attend(*qkv, implementation="xla", **options)

  monkeypatch.setattr(attention, "_device_fuses", lambda: True)
  monkeypatch.setattr(attention, "fits_cudnn", lambda *_: True)
  monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)
  return given


@pytest.mark.parametrize("causal", [False, True])
def test_padding_by_length_equals_a_mask(by_xla, causal):
  arrays = _inputs(heads=6, kv_heads=2)
  weight = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(np.float32)

  def loss(*qkv, pads_last):
    out = attention.attention(*qkv, mask=_padding(7), causal=causal, pads_last=pads_last)
    return (out * weight).sum(), out

  results = [jax.value_and_grad(functools.partial(loss, pads_last=last), (0, 1, 2), has_aux=True)(*arrays)
             for last in (False, True)]
  assert [sorted(options) for options in by_xla] == [
      ["is_causal", "mask"], ["is_causal", "key_value_seq_lengths"]]
  np.testing.assert_array_equal(by_xla[1]["key_value_seq_lengths"], [7, 4])
  for masked, by_length in zip(*map(jax.tree.leaves, results)):
    np.testing.assert_allclose(by_length, masked, rtol=1e-6, atol=1e-6)


def test_a_row_of_pads_alone_is_finite(by_xla):
  out = attention.attention(*_inputs(), mask=np.zeros((2, 1, 1, 7), bool), pads_last=True)
  assert np.isfinite(out).all()
  np.testing.assert_array_equal(by_xla[0]["key_value_seq_lengths"], [1, 1])


def test_every_device_takes_the_lengths_of_its_own_examples(by_xla):
  mesh = mesh_lib.make_mesh(2, 4)
  shapes = ((8, 7, 6, 16), (8, 7, 2, 16), (8, 7, 2, 16))
  arrays = [np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in shapes]
  mask = np.arange(7)[None] < np.array([7, 1, 2, 3, 4, 5, 6, 7])[:, None]
  mask = mask[:, None, None]
  run = lambda *arrays: jax.value_and_grad(
      lambda q, k, v, mask: jnp.square(attention.attention(q, k, v, mask=mask, pads_last=True)).sum(),
      (0, 1, 2))(*arrays)
  expected = run(*arrays, mask)
  by_xla.clear()
  found = jax.jit(activations.under(mesh, run))(
      *jax.device_put((*arrays, mask), mesh_lib.batch_sharding(mesh)))
  assert by_xla[0]["key_value_seq_lengths"].shape == (1,)
  for a, b in zip(*map(jax.tree.leaves, (found, expected))):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def cuda(monkeypatch):
  """Lowers gradients of attention for an NVIDIA GPU, which this machine need not have."""
  cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91900)
  monkeypatch.setattr(cudnn, "check_is_flash_attention", lambda *args, **options: None)
  monkeypatch.setattr(attention, "_device_fuses", lambda: True)

  def lower(shapes, mask, **options):
    specs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    loss = lambda q, k, v, mask: attention.attention(q, k, v, mask=mask, **options).sum()
    return jax.jit(jax.grad(loss, (0, 1, 2))).trace(
        *specs, jax.ShapeDtypeStruct(mask, jnp.bool_)).lower(lowering_platforms=("cuda",)).as_text()

  return lower


@pytest.mark.parametrize(("queries", "keys", "head_dim", "causal", "kind"), [
    (196, 512, 72, False, "PADDING"),  # the DiT at 1b, 448 px
    (511, 511, 64, True, "PADDING_CAUSAL")])  # the LLM, of a length that a mask forbids
def test_a_gpu_gets_padding_as_lengths(cuda, queries, keys, head_dim, causal, kind):
  text = cuda([(2, queries, 4, head_dim), *[(2, keys, 2, head_dim)] * 2], (2, 1, 1, keys),
              causal=causal, pads_last=True)
  assert re.findall(r"__cudnn\$\w+", text) == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
  assert set(re.findall(r"mask_type[^A-Z]+([A-Z_]+)", text)) == {kind}
  assert f"x{queries}x{keys}x" not in text  # no [Q, S] plane


def test_each_of_several_gpus_gets_lengths_of_its_examples(cuda):
  mesh = mesh_lib.make_mesh(2, 4)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    text = cuda([(16, 196, 4, 64), *[(16, 512, 2, 64)] * 2], (16, 1, 1, 512), pads_last=True)
  calls = [line for line in text.splitlines() if "__cudnn$" in line]
  assert len(calls) == 2
  for call in calls:
    assert "tensor<2x196x4x64xbf16>" in call
    assert call.count("tensor<2xi32>") == 2


def test_a_gpu_gets_other_masks_as_a_bias(cuda):
  text = cuda([(2, 256, 4, 64), *[(2, 512, 2, 64)] * 2], (2, 1, 256, 512))
  assert re.findall(r"__cudnn\$\w+", text) == [
      "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
