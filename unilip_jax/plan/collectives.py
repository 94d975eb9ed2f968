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
from unilip_jax.plan import hlo, replica_groups, topology

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
    group: number of devices that take part together; of a collective-permute 2, or 1 if no device sends to
      another.
    times: executions per step.
    members: one of the groups, numbered as the mesh's devices; () where only its size is known, which is
      taken to fill slices or nodes one after another.
  """

  kind: str
  bytes: int
  group: int
  times: float
  members: tuple[int, ...] = ()

  @property
  def sent(self) -> float:
    """Bytes that a device sends per execution, in a ring."""
    return self.sent_in(self.group)

  def sent_in(self, group: int) -> float:
    """Bytes that a device sends per execution, in a ring of `group` devices."""
    share = (group - 1) / group
    if self.kind == "all-reduce":
      return 2 * share * self.bytes
    if self.kind.startswith("collective"):
      return self.bytes if group > 1 else 0.0
    return share * self.bytes

  def spread(self, inside: int) -> int:
    """Returns the number of slices or nodes, of `inside` devices each, that a group spans."""
    if self.members:
      return len({m // inside for m in self.members})
    return -(-self.group // inside)


def find(program: hlo.Program) -> list[Collective]:
  """Finds every collective of a step, fused and asynchronous ones included, loops times their trips.

  A TPU spreads an asynchronous collective over the fusions that run at the same time. All of them name it,
  by one channel; it counts where it is started. Channels alone do not tell collectives apart: those that
  the compiler makes late all have number 1.
  """
  found: dict[str, tuple[Collective, tuple[str, str] | None]] = {}
  started = set()
  for i, times in program.walk():
    starts = i.op == "fusion" and _starts(program, i)
    for inner, c in _within(program, i):
      channel = re.search(r"channel_id=(\d+)", inner.attributes)
      key = (c.kind, channel[1]) if channel else None
      if starts:
        started.add(key)
      if inner.name not in found or times < found[inner.name][0].times:
        found[inner.name] = (dataclasses.replace(c, times=times),
                             key if i.op == "fusion" and not starts else None)
  return [c for c, passed in found.values() if passed not in started]


def _starts(program: hlo.Program, fusion: hlo.Instruction) -> bool:
  return any('"AsyncCollectiveStart"' in x.attributes
             for name in fusion.called("calls") for x in program.computations[name])


def _within(program: hlo.Program, i: hlo.Instruction) -> Iterator[tuple[hlo.Instruction, Collective]]:
  """Yields the collectives that an instruction is or calls, each with its own instruction."""
  kind = i.op.removesuffix("-start")
  if kind in KINDS:
    group, members = _group(i.attributes, program.devices)
    yield i, Collective(kind, _bytes(program, i, kind), group, 1.0, members)
  elif i.op in ("fusion", "async-start", "custom-call"):
    for name in i.called("calls"):
      for inner in program.computations[name]:
        for instruction, c in _within(program, inner):
          # In a TPU's program a reduce-scatter is a fusion of all-reduce and slice.
          scatters = c.kind == "all-reduce" and "all-reduce-scatter" in f"{i.name} {name}"
          yield instruction, dataclasses.replace(c, kind="reduce-scatter") if scatters else c


def _bytes(program: hlo.Program, i: hlo.Instruction, kind: str) -> int:
  if kind == "all-gather":
    arrays = i.arrays
    # The start of an asynchronous one holds its inputs, then its outputs.
    if i.op.endswith("-start") and len(arrays) > 1:
      arrays = arrays[len(i.operands):2 * len(i.operands)]
    return hlo.total_bytes(arrays)
  return sum(hlo.total_bytes(program.arrays(o)) for o in i.operands)


def group_size(attributes: str, devices: int = 0) -> int:
  """Returns the number of devices of a group, in every form of replica_groups.py.

  Raises:
    ValueError: for another form.
  """
  return _group(attributes, devices)[0]


def _group(attributes: str, devices: int) -> tuple[int, tuple[int, ...]]:
  """Returns (size, members) of the largest group; of pairs one whose devices differ, if any."""
  groups = replica_groups.parse(attributes, devices)
  if "source_target_pairs=" in attributes:
    members = max(groups, key=lambda pair: len(set(pair)))
    return len(set(members)), members
  members = max(groups, key=len)
  return len(members), members


def seconds(collectives: Iterable[Collective], where: topology.Topology) -> float:
  """Estimates the time of all collectives one after another, none hidden behind computation.

  A group of all chips of a slice uses every link, a smaller one those of one torus axis. Beyond a slice or
  node the slower network carries each chip's share of the array.
  """
  chip, inside, total = where.chip, where.inside, 0.0
  for c in collectives:
    if c.group <= 1:
      continue
    spread = c.spread(inside)
    near = max(1, c.group // spread)  # of the group, in one slice or node
    link = chip.link if near >= inside else chip.link / chip.axes
    hops = 2 * math.ceil(math.sqrt(c.group))  # of a ring, per axis of a square torus
    one = hops * _HOP_SECONDS + (c.sent_in(near) / link if near > 1 else 0.0)
    if spread > 1:
      one += c.sent / near / chip.network
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


def sharded(abstract: Any) -> list[jax.ShapeDtypeStruct]:
  """Returns the leaves of a tree that some mesh axis splits."""
  return [x for x in jax.tree.leaves(abstract) if x.sharding.shard_shape(x.shape) != x.shape]


def implied(abstract: Any, mesh: Any, config: Any) -> list[Collective]:
  """Derives the collectives of a step from the mesh, where nothing is compiled.

  Sharded weights are gathered over fsdp in the run's dtype: trained ones for the forward and the backward
  pass, once more where that recomputes layers completely, frozen ones once. All are gathered for every
  sub-batch, except the DiT's: it takes all sub-batches at once. With mesh.gather="step" all are gathered
  once. Gradients of sharded weights are scattered over fsdp, those of replicated ones reduced over it, and
  all reduced over data; with mesh.gather="step" in the run's dtype.

  Args:
    abstract: state.TrainState of ShapeDtypeStructs with shardings.
    mesh: with its axes' sizes.
    config: uses dtype, remat, mesh.gather and what part_sizes reads.
  """
  data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
  parts = len(batch_lib.part_sizes(config))
  width = np.dtype(config.dtype).itemsize
  at_once = config.mesh.gather == "step"
  passes = 1 if at_once else 3 if "full" in config.remat.values() else 2
  gradient = width if at_once else 4  # bytes
  trained = jax.tree.leaves(abstract.params)
  once = sharded(abstract.params.get("dit", {}))
  shard = lambda leaves: sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
  count = lambda leaves: sum(x.size for x in leaves)
  result = []
  row = tuple(range(fsdp))
  column = tuple(range(0, data * fsdp, fsdp))
  if fsdp > 1:
    frozen = sum(x.size * x.dtype.itemsize for x in sharded(abstract.frozen))
    repeated = count(sharded(trained)) - count(once)
    result += [
        Collective("all-gather", passes * count(once) * width, fsdp, 1.0, row),
        Collective("reduce-scatter", gradient * count(once), fsdp, 1.0, row),
        Collective("all-gather", passes * repeated * width + frozen, fsdp, 1 if at_once else parts, row),
        Collective("reduce-scatter", gradient * repeated, fsdp, parts, row),
        Collective("all-reduce", 4 * (count(trained) - count(sharded(trained))), fsdp, 1.0, row)]
  if data > 1:
    result.append(Collective("all-reduce", gradient * shard(trained), data, 1.0, column))
  return result
