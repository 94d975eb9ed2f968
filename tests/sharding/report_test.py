"""The report of which device holds what, and the recorded partition of the published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import partitions
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import param_rules
from unilip_jax.sharding import report as sharding_report


def _float32(*shape):
  return jax.ShapeDtypeStruct(shape, np.float32)


def test_the_report_names_what_is_replicated_and_why():
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  abstract = {"big": _float32(64, 64), "odd": _float32(63, 65), "small": _float32(4)}
  rows = {r["path"]: r for r in sharding_report.rows(abstract, mesh, min_size=100)}
  assert rows["big"]["bytes_per_device"] == 64 * 64 * 4 // 4
  assert rows["odd"]["why_replicated"] == "no dimension divides by 4"
  assert rows["odd"]["bytes_per_device"] == 63 * 65 * 4
  assert rows["small"]["why_replicated"] == "small"


def test_the_text_adds_up_what_a_device_holds():
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  params = {"net": {"layers": {"kernel": jnp.ones((2, 512, 1024))}}, "odd": jnp.ones((255, 257))}
  state = state_lib.TrainState(
      step=jnp.int32(0), seed=jnp.uint32(0), params=params, opt_state=({"mu": params, "nu": params},),
      ema={}, gan={}, frozen={"scale": jnp.ones((8,))})
  state = jax.device_put(state, param_rules.tree_shardings(state, mesh, 2**15))
  lines = sharding_report.text(state, mesh, 2**15).splitlines()
  assert lines[0] == "mesh: data 2 × fsdp 4"
  assert lines[1].split() == ["net/layers/kernel", "2×512×1024", "·,·,fsdp", "1.00"]
  assert lines[2].split() == [
      "odd", "255×257", "replicated", "0.25", "no", "dimension", "divides", "by", "4"]
  assert lines[3].startswith("1 small arrays")
  assert lines[4] == "MB per device: parameters 1.2, frozen 0.0, optimizer 2.5; together 3.8"


def test_a_large_array_that_nothing_divides_is_refused_with_the_sizes_that_do():
  mesh = mesh_lib.make_mesh(1, 8)
  abstract = {"net": {"kernel": _float32(1028, 516)}}  # 4 divides both
  sharding_report.check(abstract, mesh, 100, 0)
  sharding_report.check(abstract, mesh, 100, 4_000_000)
  sharding_report.check(abstract, mesh_lib.make_mesh(8, 1), 100, 1)
  with pytest.raises(ValueError, match=r"net/kernel \(1028, 516\): 2 MB\nset mesh.fsdp to one of \[2, 4\]"):
    sharding_report.check(abstract, mesh, 100, 2_000_000)


@pytest.mark.parametrize("size", partitions.SIZES)
def test_the_partition_at_published_size_is_the_recorded_one(size):
  recorded = (partitions.FOLDER / f"{size}.txt").read_text()
  assert partitions.text(size) == recorded, "run python -m tests.partitions and look at the difference"


def test_frozen_weights_may_be_replicated_by_config():
  mesh = mesh_lib.make_mesh(2, 4)
  kernel = {"net": {"kernel": jax.ShapeDtypeStruct(
      (64, 64), np.float32, sharding=mesh_lib.replicated(mesh))}}
  (row,) = sharding_report.rows(kernel, mesh, min_size=1)
  assert row["why_replicated"] == "mesh.frozen_sharding is replicated"
  assert row["bytes_per_device"] == 64 * 64 * 4
  with pytest.raises(ValueError, match="net/kernel"):
    sharding_report.check({"net": {"kernel": _float32(63, 65)}}, mesh, 1, 100)
  sharding_report.check({"net": {"kernel": _float32(63, 65)}}, mesh, 1, 100, allowed=("net/kernel",))
