"""The conversion engine: bit-equal round trips, and an error for everything that does not fit."""

import jax
import ml_dtypes
import numpy as np
import pytest

from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.convert.engine import Rule

_TABLE = (
    Rule("enc.{i}.q.weight", "a/layers/q/kernel", "linear", count=3),
    Rule("enc.{i}.norm", "a/layers/norm/scale", count=3),
    Rule("up.w", "b/up/kernel", "conv"),
    Rule(("q.weight", "k.weight", "v.weight"), "c/qkv/kernel", "linear", sizes=(6, 2, 2)),
    Rule(("q.bias", "k.bias", "v.bias"), "c/qkv/bias", sizes=(6, 2, 2)),
    Rule(("l.{i}.a", "l.{i}.b"), "d/layers/ab/kernel", "linear", count=2),
    Rule("dw", "e/kernel", "conv"),
    Rule("point", "f/kernel", "conv1x1_linear"),
    Rule("grouped", "f/grouped", "grouped1x1"),
    Rule("gamma", "g/layer_scale", "channels"),
    Rule("mean", "g/mean", "channels_4d"),
)


def _tensors(dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = {
      **{f"enc.{i}.q.weight": (5, 4) for i in range(3)},
      **{f"enc.{i}.norm": (4,) for i in range(3)},
      "up.w": (3, 2, 5, 5),
      "q.weight": (6, 4), "k.weight": (2, 4), "v.weight": (2, 4),
      "q.bias": (6,), "k.bias": (2,), "v.bias": (2,),
      **{f"l.{i}.{p}": (3, 4) for i in range(2) for p in "ab"},
      "dw": (6, 1, 3, 3), "point": (3, 2, 1, 1), "grouped": (6, 2, 1, 1),
      "gamma": (4, 1, 1), "mean": (1, 3, 1, 1)}
  return {k: rng.standard_normal(s).astype(dtype) for k, s in shapes.items()}


def _expected():
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                      engine.from_torch(_tensors(), _TABLE, None))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_is_bit_equal(dtype):
  tensors = _tensors(dtype)
  params = engine.from_torch(tensors, _TABLE, _expected())
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  back = engine.to_torch(params, _TABLE, np.dtype(dtype))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert back[name].dtype == tensor.dtype
    assert back[name].flags.c_contiguous
    np.testing.assert_array_equal(back[name].view(np.uint8), tensor.view(np.uint8))


def test_layers_are_stacked_and_joined_as_the_rules_say():
  tensors = _tensors()
  flat = tree.flatten(engine.from_torch(tensors, _TABLE, None))
  np.testing.assert_array_equal(flat["a/layers/q/kernel"][2], tensors["enc.2.q.weight"].T)
  np.testing.assert_array_equal(flat["b/up/kernel"], tensors["up.w"].transpose(2, 3, 1, 0))
  np.testing.assert_array_equal(
      flat["c/qkv/bias"], np.concatenate([tensors[f"{n}.bias"] for n in "qkv"]))
  np.testing.assert_array_equal(flat["d/layers/ab/kernel"][1, :, 3:], tensors["l.1.b"].T)
  np.testing.assert_array_equal(flat["f/kernel"], tensors["point"][:, :, 0, 0].T)


def test_unknown_tensor_is_refused_unless_skipped_with_a_reason():
  tensors = _tensors() | {"lm_head.weight": np.zeros((7, 3), np.float32)}
  with pytest.raises(engine.ConversionError, match=r"unknown.*\n.*lm_head\.weight \(7, 3\)"):
    engine.from_torch(tensors, _TABLE, None)
  skip = [(r"lm_head\.", "language model")]
  engine.from_torch(tensors, _TABLE, None, skip=skip)
  assert engine.unused(tensors, _TABLE, skip) == {"language model": ["lm_head.weight"]}


def test_missing_tensor_names_both_sides():
  tensors = _tensors()
  del tensors["enc.1.norm"]
  with pytest.raises(engine.ConversionError, match=r"enc\.1\.norm.*a/layers/norm/scale"):
    engine.from_torch(tensors, _TABLE, None)


def test_doubled_names_and_paths_are_refused():
  with pytest.raises(engine.ConversionError, match=r"two rules read them(.|\n)*dw"):
    engine.from_torch(_tensors(), (*_TABLE, Rule("dw", "h/kernel", "conv")), None)
  tensors = _tensors() | {"dw2": np.zeros((6, 1, 3, 3), np.float32)}
  table = (*_TABLE, Rule("dw2", "e/kernel", "conv"))
  with pytest.raises(engine.ConversionError, match=r"two rules give them(.|\n)*e/kernel"):
    engine.from_torch(tensors, table, None)
  with pytest.raises(engine.ConversionError, match=r"two rules give them(.|\n)*e/kernel"):
    engine.to_torch(engine.from_torch(_tensors(), _TABLE, None), table)


@pytest.mark.parametrize(("name", "shape"), [
    ("enc.1.q.weight", (5, 3)), ("enc.1.q.weight", (5,)), ("up.w", (3, 3, 5, 5)),
    ("k.weight", (3, 4)), ("point", (3, 2, 3, 3)), ("gamma", (5, 1, 1))])
def test_wrong_shape_shows_both_names_and_both_shapes(name, shape):
  tensors = _tensors() | {name: np.zeros(shape, np.float32)}
  path = next(r.path for r in _TABLE if name in engine.torch_names([r]))
  with pytest.raises(engine.ConversionError, match="wrong shape") as error:
    engine.from_torch(tensors, _TABLE, _expected())
  text = str(error.value)
  assert name in text
  assert str(shape) in text
  assert path in text
  assert "model (" in text


def test_model_paths_without_rules_and_rules_without_model_paths_are_refused():
  expected = tree.flatten(_expected())
  more = expected | {"z/new": jax.ShapeDtypeStruct((2,), np.float32)}
  with pytest.raises(engine.ConversionError, match=r"no rule gives them(.|\n)*z/new \(2,\)"):
    engine.from_torch(_tensors(), _TABLE, more)
  less = {k: v for k, v in expected.items() if k != "e/kernel"}
  with pytest.raises(engine.ConversionError, match=r"not in the model(.|\n)*e/kernel"):
    engine.from_torch(_tensors(), _TABLE, less)


def test_layer_count_must_match_the_models():
  expected = tree.flatten(_expected())
  expected["a/layers/norm/scale"] = jax.ShapeDtypeStruct((4, 4), np.float32)
  with pytest.raises(engine.ConversionError, match=r"3 tensors to stack.*\(4, 4\)"):
    engine.from_torch(_tensors(), _TABLE, expected)


def test_export_refuses_what_the_table_does_not_name():
  params = engine.from_torch(_tensors(), _TABLE, None)
  with pytest.raises(engine.ConversionError, match=r"no rule reads them(.|\n)*x/kernel"):
    engine.to_torch(params | {"x": {"kernel": np.zeros(3)}}, _TABLE)
  with pytest.raises(engine.ConversionError, match=r"missing in the parameters(.|\n)*e/kernel"):
    engine.to_torch({k: v for k, v in params.items() if k != "e"}, _TABLE)
  with pytest.raises(engine.ConversionError, match=r"e/kernel \(3,\)"):
    engine.to_torch(params | {"e": {"kernel": np.zeros(3)}}, _TABLE)


def test_malformed_rules_are_refused():
  for bad in (dict(torch="a.{i}", path="x"), dict(torch="a", path="x/{i}"),
              dict(torch="a", path="x", transform="turn"), dict(torch=("a.{i}", "b"), path="x", count=2),
              dict(torch=("a", "b"), path="x", sizes=(1,))):
    with pytest.raises(ValueError, match=r"transform|\{i\}|size"):
      Rule(**bad)
