"""Collectives of a compiled step: kinds, bytes sent between chips, and the time that the links need."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import math
import re
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (names bfloat16 for numpy)
import numpy as np

from unilip_jax.data import batch as batch_lib
from unilip_jax.plan import chips, hlo, topology

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
         "collective-broadcast", "ragged-all-to-all")
_HOP_SECONDS = 1e-6  # from chip to chip; the order of magnitude that the scaling literature gives


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective and how often a step runs it.

  Attributes:
    kind: of KINDS.
    bytes: of the complete array on one device: the input of an all-reduce or reduce-scatter, the output
      of an all-gather.
    group: number of devices that take part together.
    times: executions per step.
  """

  kind: str
  bytes: int
  group: int
  times: float

  @property
  def sent(self) -> float:
    """Bytes that a device sends per execution, in a ring."""
    share = (self.group - 1) / self.group if self.group > 1 else 0.0
    if self.kind == "all-reduce":
      return 2 * share * self.bytes
    return self.bytes if self.kind.startswith("collective") else share * self.bytes


def find(program: hlo.Program) -> list[Collective]:
  """Finds every collective of a step, fused and asynchronous ones included, loops times their trips.

  A TPU spreads an asynchronous collective over the fusions that run at the same time. All of them name it,
  by one channel; the one with the fewest executions is where it is called.
  """
  by_channel: dict[str, Collective] = {}
  for i, times in program.walk():
    for channel, c in _within(program, i):
      before = by_channel.get(channel)
      if before is None or times < before.times:
        by_channel[channel] = dataclasses.replace(c, times=times)
  return list(by_channel.values())


def _within(program: hlo.Program, i: hlo.Instruction) -> Iterator[tuple[str, Collective]]:
  """Yields (channel, collective) of an instruction and of what it calls."""
  kind = i.op.removesuffix("-start")
  if kind in KINDS:
    channel = re.search(r"channel_id=(\d+)", i.attributes)
    yield (channel[1] if channel else i.name,
           Collective(kind, _bytes(program, i, kind), group_size(i.attributes), 1.0))
  elif i.op in ("fusion", "async-start", "custom-call"):
    for name in i.called("calls"):
      for inner in program.computations[name]:
        for channel, c in _within(program, inner):
          # In a TPU's program a reduce-scatter is a fusion of all-reduce and slice.
          scatters = c.kind == "all-reduce" and "all-reduce-scatter" in f"{i.name} {name}"
          yield channel, dataclasses.replace(c, kind="reduce-scatter") if scatters else c


def _bytes(program: hlo.Program, i: hlo.Instruction, kind: str) -> int:
  if kind == "all-gather":
    arrays = i.arrays
    # The start of an asynchronous one holds its inputs, then its outputs.
    if i.op.endswith("-start") and len(arrays) > 1:
      arrays = arrays[len(i.operands):2 * len(i.operands)]
    return hlo.total_bytes(arrays)
  return sum(hlo.total_bytes(program.arrays(o)) for o in i.operands)


def group_size(attributes: str) -> int:
  """Returns the number of devices of one group, from any of the three forms in which XLA writes them."""
  if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
    return len(match[1].split(","))
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
    return int(match[2])
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
    sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", match[1])}
    named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
    return math.prod(int(part) if part else sizes[name] for name, part in named)
  return 2  # a collective-permute lists pairs


def seconds(collectives: Iterable[Collective], where: topology.Topology) -> float:
  """Estimates the time of all collectives one after another, none hidden behind computation.

  A group of all chips of a slice uses every link, a smaller one those of one torus axis. Beyond a slice or
  node the slower network carries each chip's share of the array.
  """
  chip, total = where.chip, 0.0
  inside = where.size // where.slices
  if chip.kind == "gpu":
    inside = min(inside, chips.GPUS_PER_NODE)
  for c in collectives:
    if c.group <= 1:
      continue
    link = chip.link if c.group >= inside else chip.link / chip.axes
    hops = 2 * math.ceil(math.sqrt(c.group))  # of a ring, per axis of a square torus
    one = c.sent / link + hops * _HOP_SECONDS
    if c.group > inside:
      one += c.sent / inside / chip.network
    total += c.times * one
  return total


def summary(collectives: Sequence[Collective], where: topology.Topology) -> dict[str, Any]:
  """Returns the collectives as in plan.json, per device and step."""
  kinds: dict[str, dict[str, float]] = {}
  for c in collectives:
    row = kinds.setdefault(c.kind, {"calls": 0.0, "bytes": 0.0, "sent_bytes": 0.0})
    row["calls"] += c.times
    row["bytes"] += c.times * c.bytes
    row["sent_bytes"] += c.times * c.sent
  return {"by_kind": kinds,
          "sent_bytes_per_device": sum(c.sent * c.times for c in collectives),
          "seconds_if_not_hidden": seconds(collectives, where)}


def implied(abstract: Any, mesh: Any, config: Any) -> list[Collective]:
  """Derives the collectives of a step from the mesh, where nothing is compiled.

  Sharded weights are gathered over fsdp in the run's dtype: trained ones for the forward and the backward
  pass, once more where that recomputes layers completely, frozen ones once. All are gathered for every
  sub-batch, except the DiT's: it takes all sub-batches at once. Gradients of sharded weights are scattered
  over fsdp, those of replicated ones reduced over it, and all reduced over data.

  Args:
    abstract: state.TrainState of ShapeDtypeStructs with shardings.
    mesh: with its axes' sizes.
    config: uses dtype, remat and what part_sizes reads.
  """
  data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
  parts = len(batch_lib.part_sizes(config))
  passes = 3 if "full" in config.remat.values() else 2
  width = np.dtype(config.dtype).itemsize
  trained = jax.tree.leaves(abstract.params)
  sharded = lambda leaves: [x for x in leaves if x.sharding.shard_shape(x.shape) != x.shape]
  once = sharded(jax.tree.leaves(abstract.params.get("dit", {})))
  shard = lambda leaves: sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
  count = lambda leaves: sum(x.size for x in leaves)
  result = []
  if fsdp > 1:
    frozen = sum(x.size * x.dtype.itemsize for x in sharded(jax.tree.leaves(abstract.frozen)))
    repeated = count(sharded(trained)) - count(once)
    result += [
        Collective("all-gather", passes * count(once) * width, fsdp, 1.0),
        Collective("reduce-scatter", 4 * count(once), fsdp, 1.0),
        Collective("all-gather", passes * repeated * width + frozen, fsdp, parts),
        Collective("reduce-scatter", 4 * repeated, fsdp, parts),
        Collective("all-reduce", 4 * (count(trained) - count(sharded(trained))), fsdp, 1.0)]
  if data > 1:
    result.append(Collective("all-reduce", 4 * shard(trained), data, 1.0))
  return result
