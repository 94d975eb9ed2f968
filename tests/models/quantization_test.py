"""int8 weights are near the originals, small, and used as exactly q · s."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unilip_jax import UniLIP
from unilip_jax.common import tree
from unilip_jax.models import layers, quantization
from unilip_jax.ops import cpu
from unilip_jax.weights import sources


def _dequantize(params):
  """Replaces quantized parameters by q · s in float32; the others stay."""
  flat = tree.flatten(params)
  scales = {p.removesuffix(quantization.SCALE): s for p, s in flat.items()
            if p.endswith(("kernel_scale", "embedding_scale", "head_scale"))}
  # One scale for each output channel: rows of the embedding, columns of dense layers.
  over = lambda p: scales[p][..., None] if p == "llm/embedding" else scales[p][..., None, :]
  return tree.unflatten({
      p: x.astype(jnp.float32) * over(p) if p in scales else x for p, x in flat.items()
      if p.removesuffix(quantization.SCALE) not in scales or p in scales})


@pytest.fixture(autouse=True)
def _loops(monkeypatch):
  monkeypatch.setattr(cpu, "_UNROLLED", 0)  # loops compile sooner


@pytest.fixture(scope="module")
def params():
  """The included tiny model."""
  stored = sources.open_weights("shapes:gen2")
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return tree.unflatten(stored.restore({
      name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=here)
      for name, leaf in stored.shapes.items()}))


def test_a_weight_moves_by_half_a_step_at_most(params):
  small = quantization.quantize(params)
  before, after = tree.flatten(params), tree.flatten(_dequantize(small))
  steps = {p.removesuffix(quantization.SCALE): s for p, s in tree.flatten(small).items()
           if p.endswith(quantization.SCALE)}
  assert before.keys() == after.keys()
  for path, value in before.items():
    if path in steps:
      step = np.asarray(steps[path])
      # One step for each output channel: rows of the embedding, columns of dense layers.
      step = step[..., None] if path == "llm/embedding" else step[..., None, :]
      assert np.all(np.abs(after[path] - value) <= 0.5001 * step), path
    else:
      np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_only_dense_layers_of_stacks_and_the_embedding_are_int8(params):
  flat = tree.flatten(quantization.quantize(params))
  small = {p for p, v in flat.items() if v.dtype == jnp.int8}
  layer = {f"{stack}/layers/{name}/kernel" for stack in ("llm/stack", "connector")
           for name in ("attn/qkv", "attn/out", "mlp/gate_up", "mlp/down")}
  layer |= {f"dit/layers/{name}/kernel" for name in (
      "attn/qkv", "attn/out", "cross/q", "cross/kv", "cross/out", "ff/up", "ff/down")}
  layer |= {f"vision_tower/layers/{name}/kernel" for name in (
      "attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")}
  assert small == layer | {"llm/embedding"}


def test_quantizing_twice_changes_nothing(params):
  once = quantization.quantize(params)
  chex.assert_trees_all_equal(once, quantization.quantize(once))


def test_an_output_of_zeros_stays_zero():
  flat = {"llm/stack/layers/mlp/down/kernel": jnp.zeros((2, 3, 4))}
  small = tree.flatten(quantization.quantize(tree.unflatten(flat)))
  chex.assert_tree_all_finite(small)
  assert not small["llm/stack/layers/mlp/down/kernel"].any()


def test_a_head_of_its_own_is_scaled_by_row():
  head = jax.random.normal(jax.random.key(0), (16, 40)) * jnp.logspace(-2, 2, 40)[None]
  small = quantization.quantize({"llm": {"head": head}})
  chex.assert_shape(small["llm"]["head_scale"], (40,))
  back = _dequantize(small)["llm"]["head"]
  np.testing.assert_array_less(np.abs(back - head).max(0), np.abs(head).max(0) / 250)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_multiplies_by_the_dequantized_weights(dtype):
  params = {"kernel": jax.random.normal(jax.random.key(0), (64, 32)), "bias": jnp.arange(32.0)}
  small = {"layers": params}  # as a layer of a stack of one, so that it is quantized
  small = quantization.quantize({"llm": jax.tree.map(lambda x: x[None], small)})
  floating = _dequantize(small)["llm"]["layers"]
  pick = lambda t: jax.tree.map(lambda x: x[0], t)
  x = jax.random.normal(jax.random.key(1), (3, 5, 64))
  dense = layers.Dense(32, dtype)
  result = dense.apply({"params": pick(small["llm"]["layers"])}, x)
  want = layers.Dense(32, jnp.float32).apply(
      {"params": pick(floating)}, x.astype(dtype).astype(jnp.float32))
  chex.assert_type(result, dtype)
  rtol = 1e-5 if dtype == jnp.float32 else 2**-7
  np.testing.assert_allclose(result.astype(np.float32), want, rtol=rtol, atol=rtol * np.abs(want).max())


def test_the_model_computes_with_the_dequantized_weights(params):
  """Every place that reads a weight applies its scale: chat, generation and editing agree."""
  small = UniLIP.load("shapes:gen2", "float32", int8=True, batch_size=2)
  same = UniLIP.load("shapes:gen2", "float32", batch_size=2)
  same._params = _dequantize(small._params)
  assert not any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(same._params))
  prompts = ["a red circle", "two blue squares"]
  result, want = (
      np.stack(m.generate(prompts, steps=4, guidance=2.0, output="array")) for m in (small, same))
  assert np.abs(result.astype(int) - want).max() <= 1
  ours_edit, want_edit = (m.edit(want[0], "make the red circle blue", steps=4, guidance=2.0, output="array")
                          for m in (small, same))
  assert np.abs(ours_edit.astype(int) - want_edit).max() <= 1
  question = "what colour is the circle?"
  assert small.chat(want[0], question) == same.chat(want[0], question) != ""


def test_memory_shrinks_to_a_quarter_of_float32(params):
  size = lambda t: sum(x.nbytes for x in jax.tree.leaves(t))
  for name in ("llm", "connector", "vision_tower"):
    full, small = size(params[name]), size(quantization.quantize({name: params[name]}))
    assert small < 0.36 * full, (name, small / full)
