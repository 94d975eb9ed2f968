"""Meshes, batches that divide, and constraints: what goes where, without compiling a network."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from unilip_jax.configs import gen2, stage2
from unilip_jax.data import batch as batch_lib
from unilip_jax.sharding import activations, param_rules
from unilip_jax.sharding import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Device:
  """What building a mesh reads of a device."""

  id: int
  process_index: int
  slice_index: int
  platform: str = "gpu"
  device_kind: str = "fake"


def _devices(count, slices=1, processes=1):
  return [Device(i, i * processes // count, i * slices // count) for i in range(count)]


def test_mesh_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="does not divide 8 devices"):
    mesh_lib.make_mesh(fsdp=3)
  with pytest.raises(ValueError, match="is not the 8 devices"):
    mesh_lib.make_mesh(data=2, fsdp=2)
  with pytest.raises(ValueError, match="choose a multiple, e.g. 16"):  # noqa: RUF043
    mesh_lib.check_batch_size(12, mesh_lib.make_mesh(), "batch_size")


def test_fsdp_beyond_64_is_refused_with_the_remedy():
  with pytest.raises(ValueError, match=r"896, 1152, 2240.*set mesh.fsdp=64 and mesh.data=-1"):
    mesh_lib.make_mesh(fsdp=128, devices=_devices(256))


@pytest.mark.parametrize(("slices", "processes", "asked"), [(4, 8, 0), (4, 8, 4), (1, 4, 4)])
def test_data_runs_across_slices_and_fsdp_stays_inside(slices, processes, asked):
  devices = _devices(32, slices, processes)
  shuffled = [devices[i] for i in np.random.default_rng(0).permutation(32)]
  grid = mesh_lib.device_grid(shuffled, 8, 4, asked)
  chex.assert_shape(grid, (8, 4))
  assert {d.id for d in grid.flat} == set(range(32))
  group = (lambda d: d.slice_index) if slices > 1 else (lambda d: d.process_index)
  groups = [{group(d) for d in row} for row in grid]
  assert all(len(g) == 1 for g in groups)
  # Rows of one slice are adjacent: a reduction over `data` sums inside a slice first.
  assert [g.pop() for g in groups] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_slices_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"form 4 slices.*set mesh.slices=0"):
    mesh_lib.device_grid(_devices(32, 4, 8), 8, 4, 2)
  with pytest.raises(ValueError, match=r"4 slices of 8 devices.*choose mesh.fsdp from \[1, 2, 4, 8\]"):
    mesh_lib.device_grid(_devices(32, 4, 8), 2, 16)


def test_one_slice_may_be_asked_for_over_several():
  assert mesh_lib.device_grid(_devices(32, 4, 4), 1, 32, 1).shape == (1, 32)


def test_every_sub_batch_divides_over_devices_and_micro_batches():
  config, mesh = gen2.get_config("tiny"), mesh_lib.make_mesh(2, 4)
  config.batch_size = 64
  config.data.edit_share, config.data.part_multiple = 0.25, 8
  batch_lib.check_divides(config, mesh)  # 48 and 16
  config.grad_accum_steps = 2
  batch_lib.check_divides(config, mesh)
  config.grad_accum_steps = 4
  with pytest.raises(
      ValueError, match=r"'edit': 16.*8 devices × grad_accum_steps=4; set data.part_multiple=32"):
    batch_lib.check_divides(config, mesh)
  config = stage2.get_config("tiny")
  config.batch_size, config.grad_accum_steps = 24, 2
  with pytest.raises(ValueError, match=r"8 devices × grad_accum_steps=2; choose a multiple of 16, e.g. 32"):
    batch_lib.check_divides(config, mesh)


def test_put_gives_the_same_values_on_every_mesh():
  host = {"w": np.arange(64, dtype=np.float32).reshape(8, 8)}
  for fsdp in (1, 4, 8):
    mesh = mesh_lib.make_mesh(fsdp=fsdp)
    placed = mesh_lib.put(host, param_rules.tree_shardings(host, mesh, min_size=1))
    np.testing.assert_array_equal(placed["w"], host["w"])


def test_constraints_hold_under_a_mesh_and_do_nothing_without():
  mesh = mesh_lib.make_mesh(2, 4)
  double = lambda x: activations.constrain(x * 2, "batch")
  x = jax.device_put(jnp.ones((16, 4, 8)), mesh_lib.replicated(mesh))
  split = jax.jit(activations.under(mesh, double))(x)
  assert split.sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 3)
  embedded = jax.jit(activations.under(mesh, lambda x: activations.constrain(x, "embedded")))(x)
  assert embedded.sharding.spec == P("data", None, "fsdp")
  assert "sharding_constraint" not in str(jax.make_jaxpr(double)(x))
  few = jax.make_jaxpr(activations.under(mesh, double))(jnp.ones((3, 4, 8)))
  assert "sharding_constraint" not in str(few), "3 examples do not divide over 8 devices"
  with pytest.raises(ValueError, match="'pixels'; choose one of batch, micro_batches, embedded"):
    activations.constrain(x, "pixels")


def test_joining_and_parting_sub_batches_moves_no_example():
  mesh = mesh_lib.make_mesh(2, 4)
  parts = [jnp.arange(16 * 3.0).reshape(16, 3), -jnp.arange(8 * 3.0).reshape(8, 3)]
  there_and_back = jax.jit(activations.under(
      mesh, lambda parts: (joined := activations.join(parts), activations.part(joined, [2, 1]))))
  compiled = there_and_back.lower(jax.device_put(parts, mesh_lib.batch_sharding(mesh))).compile()
  assert not re.search(r"all-gather|all-to-all|all-reduce|collective-permute", compiled.as_text())
  joined, again = compiled(jax.device_put(parts, mesh_lib.batch_sharding(mesh)))
  assert joined.sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 2)
  np.testing.assert_array_equal(joined[:3], [*parts[0][:2], parts[1][0]], "those of the first device")
  for found, want in zip(again, parts, strict=True):
    np.testing.assert_array_equal(found, want)


def test_sub_batches_follow_one_another_on_one_device_or_where_they_do_not_divide():
  parts = [jnp.arange(6.0), -jnp.arange(3.0)]
  for mesh in (mesh_lib.make_mesh(2, 4), mesh_lib.make_mesh(1, 1, jax.devices()[:1])):
    joined = jax.jit(activations.under(mesh, activations.join))(parts)
    np.testing.assert_array_equal(joined, jnp.concatenate(parts))
    for found, want in zip(activations.part(joined, [6, 3]), parts, strict=True):
      np.testing.assert_array_equal(found, want)


def test_gradients_are_split_as_their_parameters():
  mesh = mesh_lib.make_mesh(2, 4)
  params = {"net": {"layers": {"kernel": jnp.ones((4, 16, 32)), "bias": jnp.ones((4, 8))}}}
  split = jax.jit(activations.under(mesh, lambda p: activations.constrain_params(p, 64)))(
      jax.device_put(params, mesh_lib.replicated(mesh)))
  for result, want in zip(jax.tree.leaves(split), jax.tree.leaves(
      param_rules.tree_shardings(params, mesh, 64))):
    assert result.sharding.is_equivalent_to(want, result.ndim)
  assert split["net"]["layers"]["kernel"].sharding.spec == P(None, None, "fsdp")
