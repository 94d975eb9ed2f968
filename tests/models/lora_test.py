"""Adapters compute what the formula says, for parts of fused layers, several at once, and int8 weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax.common import tree
from unilip_jax.models import layers, lora, quantization, unilip

_X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


def _leaf(rank, size, scale, seed=1):
  rng = np.random.default_rng(seed)
  return {"a": rng.normal(size=(6, rank)).astype(np.float32),
          "b": rng.normal(size=(rank, size)).astype(np.float32),
          "scale": np.full(rank, scale, np.float32)}


def _params(adapters, features=10):
  rng = np.random.default_rng(2)
  kernel = rng.normal(size=(6, features)).astype(np.float32)
  dense = {"kernel": kernel, "bias": np.ones(features, np.float32)}
  return {"layer": {"qkv": dense | ({"lora": adapters} if adapters else {})}}


def _run(params, features=10):
  return layers.Dense(features, jnp.float32, name="qkv").apply({"params": params["layer"]["qkv"]}, _X)


def test_each_part_adds_its_own_product_to_its_own_outputs():
  # 10 outputs of width 6: q has 6, k and v have 2 each.
  q, v, full = _leaf(2, 6, 0.5), _leaf(3, 2, 2.0, seed=3), _leaf(1, 10, 1.0, seed=4)
  expected = np.array(_run(_params({})))
  expected[:, :6] += _X @ q["a"] @ q["b"] * 0.5
  expected[:, 8:] += _X @ v["a"] @ v["b"] * 2.0
  expected += _X @ full["a"] @ full["b"]
  params = _params({"full": full, "q": q, "v": v})
  np.testing.assert_allclose(_run(params), expected, rtol=2e-5, atol=1e-5)
  np.testing.assert_allclose(_run(lora.merge(params)), expected, rtol=2e-5, atol=1e-5)


def test_weighted_adapters_of_different_ranks_add_up():
  one, two = ({"layer": {"qkv": {"lora": {"q": _leaf(r, 6, 1.0, seed=r)}}}} for r in (2, 4))
  base = _params({})
  alone = [np.asarray(_run(tree.merge(base, adapter))) - np.asarray(_run(base)) for adapter in (one, two)]
  both = tree.merge(base, lora.combine([(one, 0.5), (two, -2.0)]))
  np.testing.assert_allclose(
      _run(both) - _run(base), 0.5 * alone[0] - 2.0 * alone[1], rtol=1e-4, atol=1e-4)


def test_dropout_scales_what_it_keeps_and_depends_on_the_key():
  leaf = _leaf(2, 6, 1.0)
  params = _params({"q": leaf})
  outs = [np.asarray(_run(lora.with_dropout(params, 0.5, jax.random.key(k)))) for k in (0, 0, 1)]
  np.testing.assert_array_equal(outs[0], outs[1])
  assert not np.array_equal(outs[0], outs[2])
  x = np.ones((4000, 6), np.float32)
  dropped = lora.with_dropout(params, 0.5, jax.random.key(3))["layer"]["qkv"]["lora"]
  mean = np.asarray(lora.branch(jnp.asarray(x), dropped, "qkv", 10, jnp.float32)).mean(0)[:6]
  np.testing.assert_allclose(mean, leaf["a"].sum(0) @ leaf["b"], atol=0.3)


def test_int8_weights_take_an_adapter_but_no_merge():
  params = {"llm": {"layers": {"qkv": jax.tree.map(lambda x: x[None], _params({})["layer"]["qkv"])}}}
  small = quantization.quantize(params)
  adapted = tree.merge(small, {"llm": {"layers": {"qkv": {"lora": {"q": jax.tree.map(
      lambda x: x[None], _leaf(2, 6, 1.0))}}}}})
  with pytest.raises(ValueError, match="int8"):
    lora.merge(adapted)
  apply = lambda p: layers.Dense(10, jnp.float32, name="qkv").apply(
      {"params": jax.tree.map(lambda x: x[0], p["llm"]["layers"]["qkv"])}, _X)
  leaf = _leaf(2, 6, 1.0)
  np.testing.assert_allclose((apply(adapted) - apply(small))[:, :6], _X @ leaf["a"] @ leaf["b"], atol=1e-4)


def test_cast_keeps_scales_and_rounds_what_is_not_quantized():
  stack = jax.tree.map(lambda x: jnp.asarray(x[None]), _params({})["layer"]["qkv"])
  params = {"llm": {"layers": {"qkv": stack}}, "dit": {"out": {"bias": jnp.ones(3)}}}
  dtypes = {p: x.dtype for p, x in tree.flatten(quantization.cast(
      params, lambda path: "float32" if path.startswith("dit") else "int8")).items()}
  assert dtypes == {"llm/layers/qkv/kernel": jnp.int8, "llm/layers/qkv/kernel_scale": jnp.float32,
                    "llm/layers/qkv/bias": jnp.bfloat16, "dit/out/bias": jnp.float32}


@pytest.fixture(scope="module")
def shapes():
  return jax.eval_shape(unilip.Unilip(micro.preset().unilip, jnp.float32).init, jax.random.key(0))


class _Settings(dict):
  __getattr__ = dict.__getitem__


def _rules(*targets, **others):
  defaults = {"rank": 4, "alpha": 8.0, "rslora": False, "init": "gaussian"}
  return _Settings({"targets": targets} | defaults | others)


def test_the_first_matching_row_decides(shapes):
  table = lora.resolve(shapes, _rules(("^dit/layers/attn/qkv/q$", {"rank": 2}), ("^dit/layers/attn/", {})))
  assert {t.name: c["rank"] for t, c in table.items()} == {
      "dit/layers/attn/qkv/q": 2, "dit/layers/attn/qkv/k": 4, "dit/layers/attn/qkv/v": 4,
      "dit/layers/attn/out": 4}
  assert {c["scale"] for c in table.values()} == {4.0, 2.0}
  table = lora.resolve(shapes, _rules(("^connector/", {}), rslora=True))
  assert {c["scale"] for c in table.values()} == {4.0}


def test_rows_without_a_layer_are_refused(shapes):
  for pattern in ("^llm/heads", "^decoder/", "^latent_head/", "depthwise"):
    with pytest.raises(ValueError, match="matches no dense layer"):
      lora.resolve(shapes, _rules((pattern, {})))


def test_every_dense_layer_has_a_part_and_first_adapters_change_nothing(shapes):
  targets = lora.all_targets(shapes)
  assert {t.path.split("/")[0] for t in targets} == set(lora.MODULES)
  assert "vision_tower/layers/attn/qkv" in {t.name for t in targets}  # fused in PyTorch, too
  for init, deviation in (("gaussian", 1 / 4), ("kaiming", 24**-0.5 / 3**0.5)):
    rules = _rules(("^llm/stack/layers/attn", {}), init=init)
    first = lora.by_part(lora.init(shapes, rules, jnp.uint32(0)))
    for leaf in first.values():
      assert not np.any(leaf["b"])
      assert np.all(leaf["scale"] == 2)
    a = first["llm/stack/layers/attn/qkv", "q"]["a"]
    np.testing.assert_allclose(np.std(a), deviation, rtol=0.15)
    assert not np.array_equal(a, first["llm/stack/layers/attn/qkv", "k"]["a"])
