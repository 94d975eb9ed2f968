"""Bytes sent by programs for 2-D meshes of TPUs, against counts by hand."""

import pathlib

import pytest

from tests.plan import programs
from unilip_jax.plan import chips, collectives, hlo, timing, topology

_FOLDER = pathlib.Path(programs.__file__).parent
_LATE = (_FOLDER / "shared_channel.hlo.txt").read_text()
_CARRIED = (_FOLDER / "asynchronous.hlo.txt").read_text()
_SHARD = 4 * programs.SHARD[0] * programs.SHARD[1]
_LAYER = 2 * programs.WIDTH**2  # bytes of a layer's weights in bfloat16
# {program: (kind, bytes that a device sends, of a group of n and an array of s on each device)}
_SENT = {
    "all_reduce": ("all-reduce", lambda n, s: 2 * (n - 1) / n * s),
    "all_gather": ("all-gather", lambda n, s: (n - 1) * s),
    "reduce_scatter": ("reduce-scatter", lambda n, s: (n - 1) / n * s),
    "all_to_all": ("all-to-all", lambda n, s: (n - 1) / n * s),
    "permute": ("collective-permute", lambda n, s: s),
}


def _group(name, axes):
  fsdp = programs.TOPOLOGIES[name]
  sizes = {"data": topology.parse(name).size // fsdp, "fsdp": fsdp}
  sizes["both"] = sizes["data"] * fsdp
  return sizes[axes]


@pytest.mark.parametrize("name", programs.TOPOLOGIES)
@pytest.mark.parametrize("axes", programs.AXES)
@pytest.mark.parametrize("kind", _SENT)
def test_each_collective_sends_what_is_counted_by_hand(name, axes, kind):
  if (kind, axes) == ("permute", "both"):
    axes = "fsdp"
  (found,) = collectives.find(hlo.Program(programs.recorded(name)[f"{kind}_{axes}"]))
  group, (known, sent) = _group(name, axes), _SENT[kind]
  if (kind, axes) == ("reduce_scatter", "both"):  # over both axes the compiler reduces, then slices
    known, sent = _SENT["all_reduce"]
  assert found.kind == known
  assert found.times == 1
  assert found.sent == sent(group, _SHARD)
  assert found.group == (2 if kind == "permute" else group)
  assert found.spread(topology.parse(name).size) == 1


@pytest.mark.parametrize("name", programs.TOPOLOGIES)
def test_scanned_layers_gather_and_reduce_each_layer(name):
  """Weights are gathered over fsdp, forward and backward; gradients scattered over it, reduced over data.

  The backward gather is asynchronous: it starts in one fusion and passes through two others.
  """
  program = hlo.Program(programs.recorded(name)["layers"])
  where = topology.parse(name)
  fsdp, data = programs.TOPOLOGIES[name], where.size // programs.TOPOLOGIES[name]
  found = collectives.find(program)
  assert sorted((c.kind, c.group, c.times) for c in found) == sorted([
      ("all-gather", fsdp, programs.LAYERS), ("all-gather", fsdp, programs.LAYERS),
      ("reduce-scatter", fsdp, programs.LAYERS), ("all-reduce", data, programs.LAYERS),
      ("all-reduce", where.size, 1)])
  share = (fsdp - 1) / fsdp
  over_data = 2 * (data - 1) / data * _LAYER / fsdp
  loss = 2 * (where.size - 1) / where.size * 4
  summary = collectives.summary(found, where)
  assert summary["sent_bytes_per_device"] == programs.LAYERS * (3 * share * _LAYER + over_data) + loss


def test_collectives_that_share_a_channel_are_counted_each():
  """The compiler's late passes give all their collectives channel 1."""
  found = collectives.find(hlo.Program(_LATE))
  assert [(c.kind, c.bytes) for c in found] == [
      ("reduce-scatter", 128), ("reduce-scatter", 128 + 256), ("collective-permute", 32)]


def test_all_devices_are_one_group_where_none_is_named():
  (found, *_) = collectives.find(hlo.Program(_LATE.replace("[4,4]<=[16]", "{}")))
  assert (found.group, found.members) == (16, tuple(range(16)))


def test_an_unknown_form_of_groups_stops_the_plan():
  with pytest.raises(ValueError, match="cannot read the groups of a collective"):
    collectives.find(hlo.Program(_LATE.replace("[4,4]<=[16]", "rows(4)")))


def test_an_asynchronous_gather_counts_once_and_is_no_traffic_of_the_fusions_it_passes():
  program = hlo.Program(_CARRIED)
  (found,) = collectives.find(program)
  assert (found.kind, found.times, found.sent) == ("all-gather", 1, 3 * 64 * 1024 * 2)
  assert timing.work(program, chips.CHIPS["v5e"]).hbm_bytes == 2 * 8 * 128 * 2  # of the negation


def test_a_group_that_crosses_slices_or_nodes_waits_for_the_slower_network():
  """Two devices in two nodes are few, but no fast link connects them."""
  near = collectives.Collective("all-reduce", 2**30, 2, 1.0, (0, 1))
  far = collectives.Collective("all-reduce", 2**30, 2, 1.0, (0, 8))
  nodes = topology.parse("h100:16")
  assert (near.spread(8), far.spread(8)) == (1, 2)
  assert collectives.seconds([far], nodes) == pytest.approx(2**30 / 50e9, rel=1e-3)
  assert collectives.seconds([near], nodes) < collectives.seconds([far], nodes) / 8
  slices = topology.parse("v5e:16x16*2")
  over_data = collectives.Collective("all-reduce", 2**30, 8, 1.0, tuple(range(0, 512, 64)))  # four a slice
  assert over_data.spread(256) == 2
  assert collectives.seconds([over_data], slices) == pytest.approx(
      2 * 3 / 4 * 2**30 / 100e9 + 2 * 7 / 8 * 2**30 / 4 / 3.125e9, rel=1e-3)
