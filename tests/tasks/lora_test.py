"""Training of adapters: only A and B change, on an int8 base with dropout, and it resumes bit-exactly."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.data import batch as batch_lib
from unilip_jax.models import lora
from unilip_jax.ops import seeds
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import checkpoint, initial_state

_TARGETS = (("^dit/layers/(attn|ff)", {}), ("^llm/.*/attn", {"rank": 2}), ("^projector", {}))


@pytest.fixture(scope="module")
def task():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    yield tasks.make(micro.text_config(
        "lora", lora__targets=_TARGETS, lora__dropout=0.1, lora__base_dtype="int8", grad_accum_steps=2,
        optimizer__lr=1e-2, optimizer__warmup_steps=0, optimizer__weight_decay=0.0, mesh__fsdp=1,
        batch_size=8))


@pytest.fixture(scope="module")
def run(task):
  """(first state, states after one and two steps, compiled step, batch)."""
  rng = np.random.default_rng(0)  # sampled here, which compiles nothing
  modules = jax.tree.map(lambda s: 0.1 * rng.normal(size=s.shape).astype(np.float32), task.module_shapes)
  first = jax.jit(task.make_state)(modules, jnp.uint32(0))
  step = jax.jit(task.train_step)
  batch = batch_lib.synthetic(task.batch_spec(8), 0)
  second, metrics = step(first, batch)
  assert metrics["finite"] == 1
  return first, second, step(second, batch)[0], step, batch


def test_only_the_matrices_have_optimizer_state_and_the_base_is_int8(task):
  state = task.state_shapes()
  assert {path.split("/")[-1] for path in tree.flatten(state.params)} == {"a", "b"}
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  frozen = tree.flatten(state.frozen)
  assert {frozen["dit/layers/attn/qkv/kernel"].dtype, frozen["llm/embedding"].dtype} == {jnp.dtype("int8")}
  assert frozen["dit/layers/attn/qkv/kernel_scale"].dtype == jnp.float32
  assert frozen["dit/layers/attn/qkv/lora/q/scale"].dtype == jnp.float32
  assert frozen["decoder/conv_in/kernel"].dtype == jnp.bfloat16
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(state.params))


def test_every_adapter_learns_and_nothing_else_moves(run):
  first, second, third, _, _ = run
  chex.assert_trees_all_equal(first.frozen, third.frozen)
  start, one, two = (tree.flatten(s.params) for s in (first, second, third))
  for path, value in one.items():
    # B is zero at the start, so that A has no gradient in the first step.
    assert np.array_equal(value, start[path]) == path.endswith("/a"), path
    assert not np.array_equal(two[path], value), path


def test_a_saved_state_continues_bit_exactly(task, run, tmp_path):
  _, second, third, step, batch = run
  manager = checkpoint.Manager(str(tmp_path), keep=1)
  manager.save_frozen(second.frozen, task.model_spec())
  manager.save(1, second, {"step": 1, "position": 8})
  manager.wait()
  abstract = initial_state.abstract_state(task, task.config, mesh_lib.config_mesh(task.config))
  restored, _ = manager.restore(abstract)
  manager.close()
  chex.assert_trees_all_equal(step(jax.device_get(restored), batch)[0], third)
  assert {p.split("/")[-1] for p in tree.flatten(task.model_shapes()) if lora.is_adapter(p)} == {
      "a", "b", "scale"}


def test_dropout_differs_between_steps(task, run):
  first, _, _, step, batch = run
  grads = [step(first.replace(step=jnp.int32(n)), batch)[0].params for n in (1, 1, 2)]
  chex.assert_trees_all_equal(grads[0], grads[1])
  path = "dit/layers/attn/qkv/lora/q/b"
  assert not np.array_equal(tree.flatten(grads[0])[path], tree.flatten(grads[2])[path])


def test_the_same_seed_gives_the_same_adapters(task):
  settings = task.config.lora.copy_and_resolve_references()
  shapes = {"dit": task.module_shapes["dit"]}
  with settings.unlocked():
    settings.targets = _TARGETS[:1]
  one, same, other = (lora.init(shapes, settings, seeds.words(n)) for n in (0, 0, 1))
  chex.assert_trees_all_equal(one, same)
  path = "dit/layers/attn/qkv/lora/q/a"
  assert not np.array_equal(tree.flatten(one)[path], tree.flatten(other)[path])


def test_reconstruction_refuses_adapters(monkeypatch):
  micro.install(monkeypatch)
  with pytest.raises(ValueError, match="lora_chat"):
    tasks.make(micro.config("stage1", lora__targets=(("^vision_tower", {}),)))
