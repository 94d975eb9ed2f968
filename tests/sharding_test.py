"""Where arrays live: the largest divisible dimension, never the layer axis."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from unilip_jax import sharding


def test_largest_divisible_dimension_is_split_and_never_the_layer_axis():
  assert sharding.param_spec("a/kernel", (64, 256), 4, 1) == P(None, "fsdp")
  assert sharding.param_spec("a/kernel", (256, 30), 4, 1) == P("fsdp")
  assert sharding.param_spec("a/layers/kernel", (64, 8, 6), 4, 1) == P(None, "fsdp")
  assert sharding.param_spec("a/layers/kernel", (64, 3), 4, 1) == P()
  assert sharding.param_spec("a/kernel", (256, 256), 4, 2**20) == P()


def test_mesh_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="does not divide 8 devices"):
    sharding.make_mesh(fsdp=3)
  with pytest.raises(ValueError, match="is not the 8 devices"):
    sharding.make_mesh(data=2, fsdp=2)
  with pytest.raises(ValueError, match="choose a multiple, e.g. 16"):  # noqa: RUF043
    sharding.check_batch_size(12, sharding.make_mesh(), "batch_size")


def test_report_names_what_stays_replicated_and_why():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  abstract = {"big": jax.ShapeDtypeStruct((64, 64), np.float32),
              "odd": jax.ShapeDtypeStruct((63, 65), np.float32),
              "small": jax.ShapeDtypeStruct((4,), np.float32)}
  rows = {r["path"]: r for r in sharding.report(abstract, mesh, min_size=100)}
  assert rows["big"]["bytes_per_device"] == 64 * 64 * 4 // 4
  assert rows["odd"]["why_replicated"] == "no dimension divides"
  assert rows["small"]["why_replicated"] == "small"


def test_put_gives_the_same_values_on_every_mesh():
  host = {"w": np.arange(64, dtype=np.float32).reshape(8, 8)}
  for fsdp in (1, 4, 8):
    mesh = sharding.make_mesh(fsdp=fsdp)
    placed = sharding.put(host, sharding.tree_shardings(host, mesh, min_size=1))
    np.testing.assert_array_equal(placed["w"], host["w"])
