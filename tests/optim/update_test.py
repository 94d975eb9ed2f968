"""Gathering weights once a step gathers each once, and changes gradients by rounding at most."""

import functools
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax.models import layers
from unilip_jax.ops import backend
from unilip_jax.optim import update
from unilip_jax.sharding import activations, param_rules
from unilip_jax.sharding import mesh as mesh_lib

_WIDTH, _BATCH = 16, 32
_LEAVES = 4  # of `_Network` that fsdp splits: two kernels in each of two modules
_BFLOAT16 = 2.0**-8  # half of the distance of two numbers, relative


class _Layer(nn.Module):
  dtype: str

  @nn.compact
  def __call__(self, x):
    return x + layers.Mlp(2 * _WIDTH, _WIDTH, jnp.dtype(self.dtype), name="mlp")(x), None


class _Network(nn.Module):
  """A stack that is rematerialised, and a layer of its own."""

  dtype: str
  depth: int

  @nn.compact
  def __call__(self, x):
    x, _ = layers.scan(_Layer, self.depth, "full")(self.dtype, name="layers")(x)
    return layers.Mlp(2 * _WIDTH, _WIDTH, jnp.dtype(self.dtype), name="mlp")(x)


def _config(gather, dtype="float32", count=1):
  return micro.config("stage1", dtype=dtype, grad_accum_steps=count, mesh__min_shard_size=_WIDTH**2,
                      mesh__gather=gather)


@functools.cache
def _program(gather, dtype="float32", count=1):
  """Compiles the gradients for 2 × 4 devices: (program, parameters, batch)."""
  config, network = _config(gather, dtype, count), _Network(dtype, 2)
  mesh = mesh_lib.make_mesh(2, 4)
  batch = np.random.default_rng(0).normal(size=(_BATCH, _WIDTH)).astype(np.float32)

  def loss(params, x):
    value = jnp.square(network.apply({"params": params}, x).astype(jnp.float32) - x).mean()
    return value, {"loss": value}

  with backend.planning("tpu"):  # loops stay loops
    params = network.init(jax.random.key(0), batch)["params"]
    shardings = param_rules.tree_shardings(params, mesh, config.mesh.min_shard_size)
    step = jax.jit(activations.under(mesh, functools.partial(update.gradients, config, loss)))
    params = jax.device_put(params, shardings)
    batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    return step.lower(params, batch).compile(), params, batch


def _gradients(gather, dtype="float32", count=1):
  program, params, batch = _program(gather, dtype, count)
  grads, metrics = program(params, batch)
  for gradient, param in zip(jax.tree.leaves(grads), jax.tree.leaves(params)):
    assert gradient.dtype == jnp.float32
    assert gradient.sharding.is_equivalent_to(param.sharding, param.ndim)
  return jax.device_get(grads), float(metrics["loss"])


@pytest.mark.parametrize(("dtype", "count", "tolerance"), [
    ("float32", 2, 1e-5),
    # A gradient is rounded when it is summed over devices, and weights before they are used.
    ("bfloat16", 1, 4 * _BFLOAT16)])
def test_gradients_do_not_depend_on_when_weights_are_gathered(dtype, count, tolerance):
  (layer, loss), (step, step_loss) = _gradients("layer", dtype), _gradients("step", dtype, count)
  assert step_loss == pytest.approx(loss, rel=tolerance)
  for a, b in zip(jax.tree.leaves(layer), jax.tree.leaves(step)):
    assert np.abs(a).max() > 0
    np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())


def _gathers(program):
  """Returns how many all-gathers (the program starts, loops contain)."""
  entry, loops = 0, 0
  for computation in re.split(r"\n(?=\S)", program.as_text()):
    count = len(re.findall(r" all-gather(?:-start)?\(", computation))
    entry, loops = (entry + count, loops) if computation.startswith("ENTRY") else (entry, loops + count)
  return entry, loops


def test_once_a_step_no_loop_over_layers_or_micro_batches_gathers():
  assert _gathers(_program("step", count=2)[0]) == (_LEAVES, 0)


def test_by_layer_the_loops_over_layers_gather():
  assert _gathers(_program("layer")[0])[1] > 0


def test_one_device_gathers_nothing_and_keeps_its_float32_weights():
  config, params = _config("step", "bfloat16"), {"mlp": {"kernel": jnp.ones((64, 64))}}
  gathered = activations.under(mesh_lib.make_mesh(8, 1), lambda p: update.gathered(config, p))(params)
  assert gathered["mlp"]["kernel"].dtype == jnp.float32


def test_the_embedding_table_stays_split_and_float32_layers_are_not_rounded():
  config = _config("step", "bfloat16")
  params = {"llm": {"embedding": jnp.ones((64, 64))}, "dit": {"out": {"kernel": jnp.ones((64, 32))},
                                                              "in": {"kernel": jnp.ones((64, 32))}}}
  mesh = mesh_lib.make_mesh(2, 4)
  params = jax.device_put(params, param_rules.tree_shardings(params, mesh, 1))
  gathered = jax.jit(activations.under(mesh, lambda p: update.gathered(config, p)))(params)
  assert gathered["llm"]["embedding"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
  assert gathered["dit"]["out"]["kernel"].sharding.is_fully_replicated
  assert gathered["dit"]["out"]["kernel"].dtype == jnp.float32
  assert gathered["dit"]["in"]["kernel"].dtype == jnp.bfloat16


def test_replicated_frozen_weights_stay_as_they_are():
  config, params = _config("step", "bfloat16"), {"dit": {"in": {"kernel": jnp.ones((64, 64))}}}
  config.mesh.frozen_sharding = "replicated"
  assert update.gathered_frozen(config, params) is params
  config.mesh.frozen_sharding = "fsdp"
  gather = activations.under(mesh_lib.make_mesh(2, 4), lambda p: update.gathered_frozen(config, p))
  assert jax.eval_shape(gather, params)["dit"]["in"]["kernel"].dtype == jnp.bfloat16
