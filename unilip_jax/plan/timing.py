"""Estimates the computation time of a compiled step.

Two estimates, both sums over the scheduled program, loops times their trips:

roofline  every fusion takes the longer of its dots and convolutions at peak and its traffic with HBM.
          Asynchronous copies are hidden, but all traffic together takes at least its time at full
          bandwidth. Needs no code generation. It ignores tiles that are not full and on-chip work, so that
          it is close to a lower bound.
compiler  cycles that the TPU's compiler estimated for every fusion. They exist only after code generation.
"""

from collections.abc import Sequence
import dataclasses
import math
import re

from unilip_jax.plan import chips, collectives, hlo

_FREE = frozenset((
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "domain", "iota"))
_SLICES = ("dynamic-slice", "slice", "gather")
# The start and end of an asynchronous collective, which a TPU writes as fusions.
_ASYNC = ('"AsyncCollectiveStart"', '"AsyncCollectiveDone"')


@dataclasses.dataclass
class Work:
  """Work of one device in a step.

  Attributes:
    flops: of dots and convolutions, as compiled (the compiler's rematerialisation and padding included).
    hbm_bytes: read and written.
    roofline: seconds.
    cycles: the compiler's estimate; 0 without code generation.
  """

  flops: float = 0.0
  hbm_bytes: float = 0.0
  roofline: float = 0.0
  cycles: float = 0.0


def work(program: hlo.Program, chip: chips.Chip) -> Work:
  """Adds up the instructions of a program."""
  total, serial = Work(), 0.0
  for i, times in program.walk():
    kind = i.op.removesuffix("-start").removesuffix("-done")
    if i.op in _FREE or i.op.endswith("-done") or kind in collectives.KINDS:
      continue
    dots = _dots(program, i)
    moved = _traffic(program, i)
    flops = sum(f for f, _ in dots)
    total.flops += times * flops
    total.hbm_bytes += times * moved
    total.cycles += times * (i.cycles or 0)
    if not i.op.endswith("-start"):
      busy = sum(f / chip.rate(precision) for f, precision in dots)
      serial += times * max(busy, moved / chip.hbm_bandwidth)
  total.roofline = max(serial, total.hbm_bytes / chip.hbm_bandwidth)
  return total


def _dots(program: hlo.Program, i: hlo.Instruction) -> list[tuple[float, str]]:
  """Returns (FLOPs, precision) of each dot or convolution in an instruction and what it calls.

  The precision is that of float32 operands, "highest" or "high"; "" for all others.
  """
  if i.op in ("convolution", "dot"):
    float32 = all(program.arrays(o)[0].dtype == "f32" for o in i.operands[:2])
    named = re.search(r"operand_precision=\{(\w+)", i.attributes) if float32 else None
    return [(dot_flops(program, i), named[1] if named else "")]
  called = i.called("calls") if i.op in ("fusion", "async-start") else ()
  return [dot for name in called for inner in program.computations[name]
          for dot in _dots(program, inner)]


def dot_flops(program: hlo.Program, i: hlo.Instruction) -> float:
  """Counts 2 FLOPs per multiply-add of a dot or convolution, without zeros that dilation inserts."""
  out = i.arrays[0].dims
  left, right = (program.arrays(o)[0].dims for o in i.operands[:2])
  if i.op == "dot":
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)[1].split(",")
    return 2.0 * math.prod(out) * math.prod(left[int(d)] for d in contracted if d)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
  window = re.search(r"window=\{([^}]*)\}", i.attributes)
  fields = dict(f.split("=") for f in window[1].split()) if window else {}
  features = right[labels[2].index("o")]
  per_output = math.prod(right) / features
  spatial = sorted(set(labels[1]) - set("bf"))
  for axis, name in enumerate(spatial):
    size = int(fields["size"].split("x")[axis]) if "size" in fields else 1
    per_output /= size
    per_output *= _real_taps(
        fields, axis, size, left[labels[1].index(name)], out[labels[3].index(name)])
  return 2.0 * math.prod(out) * per_output


def _real_taps(fields: dict[str, str], axis: int, size: int, length: int, outputs: int) -> float:
  """Returns the mean number of a window's taps, along one axis, that meet data: no padding or dilation."""
  part = lambda key, default: fields[key].split("x")[axis] if key in fields else default
  stride, left, right = int(part("stride", "1")), int(part("lhs_dilate", "1")), int(
      part("rhs_dilate", "1"))
  low = int(part("pad", "0_0").split("_")[0])
  taps = sum(1 for o in range(outputs) for t in range(size)
             if 0 <= (at := o * stride - low + t * right) < (length - 1) * left + 1
             and at % left == 0)
  return taps / max(outputs, 1)


def _traffic(program: hlo.Program, i: hlo.Instruction) -> float:
  """Counts bytes between HBM and the chip of one execution; arrays in on-chip memory do not count."""
  if i.op == "fusion":
    return _fusion_traffic(program, i)
  if i.op in ("copy-start", "slice-start", "async-start", "dynamic-slice", "slice", "gather"):
    out = i.arrays
    moved = out[0].bytes if i.op == "copy-start" else min((a.bytes for a in out if a.bytes), default=0)
    source_on_chip = any(a.on_chip for o in i.operands[:1] for a in program.arrays(o))
    return moved * ((not out[0].on_chip) + (not source_on_chip))
  if i.op == "dynamic-update-slice":
    return 2 * hlo.hbm_bytes(program.arrays(i.operands[1]))
  return hlo.hbm_bytes(i.arrays) + sum(hlo.hbm_bytes(program.arrays(o)) for o in i.operands)


def _fusion_traffic(program: hlo.Program, i: hlo.Instruction) -> float:
  """Counts operands read and results written; of an operand that is only sliced, the slice.

  An asynchronous collective passes its arrays through each fusion that runs at the same time. Those are
  neither read nor written there: the links' time has them (collectives.seconds).
  """
  name = i.called("calls")[0]
  body = program.computations[name]
  if any(x.op == "custom-call" and any(a in x.attributes for a in _ASYNC) for x in body):
    return 0.0
  by_name = {x.name: x for x in body}
  total = 0.0
  for position, operand in enumerate(i.operands):
    outer = program.arrays(operand)
    if not any(a.on_chip for a in outer):
      total += _read(program, name, position, hlo.total_bytes(outer), _has_collective(body))
  root = next(x for x in body if x.root)
  results = [by_name[o] for o in root.operands] if root.op == "tuple" else [root]
  for result, array in zip(results, i.arrays):
    while result.op == "bitcast" and result.operands[0] in by_name:
      result = by_name[result.operands[0]]
    if array.on_chip or _is_carried(program, i, result):
      continue
    updated = result.op == "dynamic-update-slice"  # in place
    total += hlo.total_bytes(program.arrays(result.operands[1])) if updated else array.bytes
  return total


def _has_collective(body: Sequence[hlo.Instruction]) -> bool:
  """Returns whether a fused computation names an asynchronous collective that passes through it."""
  return any(x.op in collectives.KINDS and not x.root and "chain_id" in x.attributes for x in body)


def _is_carried(program: hlo.Program, i: hlo.Instruction, result: hlo.Instruction) -> bool:
  """Returns whether a fusion's result is an array of an asynchronous collective that passes through."""
  return (_has_collective(program.computations[i.called("calls")[0]])
          and (result.op == "parameter" or result.op in collectives.KINDS))


def _read(program: hlo.Program, name: str, position: int, size: int, carries: bool = False) -> int:
  """Counts bytes that a fused computation reads of its operand at `position`, at most its `size`.

  Scanned layers slice stacked weights inside the fusion of their dot, often one fusion deeper. Where the
  fusion `carries` an asynchronous collective, its arrays only pass to the results.
  """
  body = program.computations[name]
  users: dict[str, list[hlo.Instruction]] = {}
  for x in body:
    for o in x.operands:
      users.setdefault(o, []).append(x)

  def read(value: str) -> int:
    part = 0
    for user in users.get(value, []):
      if user.op in _SLICES:
        part += hlo.total_bytes(user.arrays)
      elif _is_relayout(program, user) and not user.root:
        part += read(user.name)
      elif user.op == "fusion":
        part += sum(_read(program, user.called("calls")[0], k, size)
                    for k, o in enumerate(user.operands) if o == value)
      elif carries and (user.op in collectives.KINDS or (user.root and user.op == "tuple")):
        continue
      elif user.op != "dynamic-update-slice":
        return size
    return min(part, size)

  parameter = next((x for x in body if x.op == "parameter" and int(x.argument) == position), None)
  return read(parameter.name) if parameter is not None and parameter.name in users else 0


def _is_relayout(program: hlo.Program, i: hlo.Instruction) -> bool:
  """Returns whether an instruction inside a fusion only changes tiles, as for int8 weights: no traffic."""
  if i.op != "fusion":
    return i.op in ("parameter", "copy", "bitcast")
  return all(_is_relayout(program, x) for x in program.computations[i.called("calls")[0]])
