"""Attention in parts equals attention at once on any mesh, and only chips that gain by it use it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unilip_jax.ops import attention, attention_parts, backend
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import flops

_MB = 10**6


def _arrays(examples=16, queries=7, keys=9, heads=4, kv_heads=2, width=8):
  rng = np.random.default_rng(0)
  shapes = ((examples, queries, heads, width), (examples, keys, kv_heads, width),
            (examples, keys, kv_heads, width))
  return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def _masks():
  own = np.random.default_rng(1).random((16, 1, 7, 9)) < 0.7
  own[..., 0] = True
  return {"no mask": None, "one for all": own[:1], "each its own": own}


def _values(attend, arrays):
  """Output and gradients."""
  weight = np.random.default_rng(2).standard_normal(arrays[0].shape).astype(np.float32)

  def loss(*arrays):
    y = attend(*arrays)
    return (y * weight).sum(), y

  (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
  return y, *gradients


@pytest.mark.parametrize("mask", list(_masks()))
@pytest.mark.parametrize("mesh", [None, (2, 4)], ids=["one device", "2 x 4"])
def test_parts_equal_attention_at_once(mask, mesh):
  arrays, mask = _arrays(), _masks()[mask]
  at_once = functools.partial(jax.nn.dot_product_attention, mask=mask)
  parts = lambda q, k, v: attention_parts.in_parts(jax.nn.dot_product_attention, q, k, v, mask, 2)
  run = functools.partial(_values, parts)
  if mesh is None:
    found = jax.jit(run)(arrays)
  else:
    mesh = mesh_lib.make_mesh(*mesh)
    found = jax.jit(activations.under(mesh, run))(jax.device_put(arrays, mesh_lib.batch_sharding(mesh)))
    assert found[0].sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 4)
  for one, other in zip(found, jax.jit(functools.partial(_values, at_once))(arrays)):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_device_goes_through_its_own_examples_alone():
  arrays, mesh = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in _arrays()], mesh_lib.make_mesh(2, 4)
  parts = lambda q, k, v: attention_parts.in_parts(jax.nn.dot_product_attention, q, k, v, None, 1)
  split = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=mesh_lib.batch_sharding(mesh)) for a in arrays]
  program = jax.jit(activations.under(mesh, parts)).lower(*split).compile().as_text()
  assert "all-gather" not in program
  assert "all-to-all" not in program
  assert flops.count(activations.under(mesh, parts), *arrays) == flops.count(
      jax.nn.dot_product_attention, *arrays)


@pytest.mark.parametrize(("examples", "score_bytes", "head_dim", "expected"), [
    (1, 67 * _MB, 64, 0),  # InternViT at 448 px: fits at once
    (8, 67 * _MB, 64, 1),
    (32, 4 * _MB, 64, 8),  # at 224 px
    (8, 4 * _MB, 64, 0),
    (32, 15 * _MB, 64, 2),  # the LLM with 512 tokens
    (7, 20 * _MB, 64, 1),
    (8, 80 * _MB, 64, 0),  # one alone would not fit
    (32, 8 * _MB, 72, 4),  # the DiT at 1b
    (32, 10 * _MB, 112, 0)])  # at 3b
def test_how_many_fit(examples, score_bytes, head_dim, expected):
  with backend.planning("tpu", "TPU v5 lite"):
    assert attention_parts.examples_per_part(examples, score_bytes, head_dim) == expected


def test_a_v6e_attends_at_once_with_heads_that_do_not_fill_tiles():
  with backend.planning("tpu", "TPU v6 lite"):
    assert attention_parts.examples_per_part(32, 8 * _MB, 64)
    assert not attention_parts.examples_per_part(32, 8 * _MB, 72)


def _is_looped(kind, platform="tpu"):
  specs = [jax.ShapeDtypeStruct((4, 1025, 16, 64), jnp.bfloat16)] * 3
  with backend.planning(platform, kind):
    return "scan" in str(jax.make_jaxpr(attention.attention)(*specs))


def test_only_chips_that_gain_attend_in_parts():
  assert _is_looped("TPU v5 lite")
  assert _is_looped("TPU v6 lite")
  assert not _is_looped("TPU v5")
  assert not _is_looped("NVIDIA H100", "gpu")
  assert not _is_looped("")  # counting the model's own work


def test_the_current_mesh_gives_the_examples_of_a_device():
  specs = [jax.ShapeDtypeStruct((8, 1025, 16, 64), jnp.bfloat16)] * 3
  with backend.planning("tpu", "TPU v6 lite"):
    trace = lambda data: str(jax.make_jaxpr(activations.under(
        mesh_lib.make_mesh(data, 1, jax.devices()[:data]), attention.attention))(*specs))
    assert "scan" in trace(4)
    assert "scan" not in trace(8)
    assert "scan" not in trace(3)  # 8 examples do not divide over them
