"""Memory of one device: counted from shardings, read from a compiled program, or estimated from a trace."""

from collections.abc import Iterator
import math
import re
from typing import Any

import jax
from jax.extend import core as jex_core
import numpy as np

from unilip_jax.optim import state as state_lib
from unilip_jax.plan import hlo


def state_bytes(abstract: state_lib.TrainState) -> dict[str, int]:
  """Bytes per device of what a run keeps between steps, counted from the shardings.

  Returns:
    {"parameters", "frozen", "optimizer", "ema", "discriminator"}; the last with its optimizer.
  """
  return {
      "parameters": tree_bytes(abstract.params), "frozen": tree_bytes(abstract.frozen),
      "optimizer": tree_bytes(abstract.opt_state), "ema": tree_bytes(abstract.ema),
      "discriminator": tree_bytes(abstract.gan)}


def tree_bytes(tree: Any) -> int:
  """Bytes per device of arrays with shardings."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
             for leaf in jax.tree.leaves(tree))


# ---- of a compiled program


def assigned_bytes(report: str) -> dict[str, int]:
  """What XLA's buffer assignment takes of a device's memory.

  Args:
    report: text of the compiler's buffer assignment.

  Returns:
    {"arguments": the state and batch, donated ones hold the results too, "results": further results,
    "temporaries": all else}, tile padding included.

  Raises:
    ValueError: if no allocation is found.
  """
  totals = {"arguments": 0, "results": 0, "temporaries": 0}
  found = False
  for line in report.splitlines():
    row = re.match(r"allocation \d+: size (\d+), (.*)", line)
    if not row:
      continue
    found = True
    if "thread-local" in row[2] or re.search(r"\bcolor [1-9]", row[2]):
      continue  # on-chip memory, flags
    kind = ("arguments" if "parameter " in row[2] else
            "results" if "maybe-live-out" in row[2] else "temporaries")
    totals[kind] += int(row[1])
  if not found:
    raise ValueError("plan: the compiler's buffer assignment names no allocation")
  return totals


def saved_bytes(program: hlo.Program) -> int:
  """Bytes that the compiled forward pass leaves for the backward pass.

  Results in HBM that depend on the batch, by the traced names made inside jvp(…) and used inside
  transpose(…). What is made of parameters alone (casts, gathered shards) does not count.
  """
  body = program.computations[program.entry]
  by_name = {i.name: i for i in body}
  of_batch: dict[str, bool] = {}
  saved: dict[str, int] = {}
  for i in body:
    if i.op == "parameter":
      of_batch[i.name] = bool(re.match(r"(batch|args\[1\])", i.op_name))
    elif i.op == "get-tuple-element":
      of_batch[i.name] = of_batch.get(_source(program, i, by_name), False)
    else:
      of_batch[i.name] = any(of_batch.get(o, False) for o in i.operands)
    if "transpose(" in i.op_name:
      for name in _leaves(i, by_name):
        made = _maker(by_name, name)
        if made and of_batch.get(made.name) and _is_forward(made.op_name):
          saved[made.name] = hlo.hbm_bytes(made.type)
  return sum(saved.values())


def _is_forward(op_name: str) -> bool:
  return "jvp(" in op_name and "transpose(" not in op_name


def _leaves(i: hlo.Instruction, by_name: dict[str, hlo.Instruction]) -> Iterator[str]:
  """Operands of an instruction, those of a tuple operand in its place."""
  for operand in i.operands:
    made = by_name.get(operand)
    yield from made.operands if made is not None and made.op == "tuple" else (operand,)


def _maker(by_name: dict[str, hlo.Instruction], name: str) -> hlo.Instruction | None:
  """What made a value, behind bitcasts and prefetches into on-chip memory."""
  made = by_name.get(name)
  while made is not None and made.operands and made.op in (
      "bitcast", "copy-start", "copy-done", "slice-start", "slice-done", "async-start", "async-done"):
    made = by_name.get(made.operands[0])
  if made is None or made.op in ("parameter", "constant", "tuple"):
    return None
  return made


def _source(
    program: hlo.Program, i: hlo.Instruction, by_name: dict[str, hlo.Instruction]) -> str:
  """What a get-tuple-element of a loop really is: what entered, where the loop leaves it alone."""
  loop = by_name.get(i.operands[0])
  if loop is None or loop.op != "while":
    return i.operands[0]
  index = int(re.search(r"index=(\d+)", i.attributes)[1])
  body = {x.name: x for x in program.computations[loop.called("body")[0]]}
  root = next(x for x in body.values() if x.root)
  entered = by_name.get(loop.operands[0])
  if root.op != "tuple" or entered is None or entered.op != "tuple":
    return i.operands[0]
  inner = body.get(root.operands[index])
  kept = (inner is not None and inner.op == "get-tuple-element"
          and re.search(rf"index={index}\b", inner.attributes)
          and body[inner.operands[0]].op == "parameter")
  return entered.operands[index] if kept else i.operands[0]


def too_large(message: str) -> dict[str, float] | None:
  """Reads the compiler's refusal of a program that does not fit; None of any other message.

  Returns:
    {"needed": bytes, at least, "available": bytes}.
  """
  found = re.search(
      r"Ran out of memory in memory space hbm.*?Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
      message, re.S) or re.search(  # where temporaries alone are too much, before they are placed
          r"Ran out of memory on HBM, the total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) "
          r"exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
  if not found:
    return None
  scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  return {"needed": float(found[1]) * scale[found[2]],
          "available": float(found[3]) * scale[found[4]]}


# ---- of a trace, for devices that nothing is compiled for

# What a compiler makes again inside the operation that reads it, rather than keep it.
_POINTWISE = frozenset(re.findall(r"\w+", """
abs add and broadcast_in_dim clamp convert_element_type copy cos div eq erf exp exp2 expand_dims ge gt
integer_pow iota is_finite le log log1p logistic lt max min mul ne neg not optimization_barrier or pow
real reshape round rsqrt select_n sign sin slice split sqrt square squeeze stop_gradient sub tanh transpose
"""))
_CALLS = frozenset(("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"))


def traced_saved_bytes(jaxpr: Any, batch_leaves: int) -> int:
  """`saved_bytes` of a traced step, over all devices, by an assumption instead of a compiler.

  Kept are results of products, loops and reductions that depend on the batch; pointwise results are
  made again from these.

  Args:
    jaxpr: of (state, batch) -> anything.
    batch_leaves: the last inputs that belong to the batch.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  of_batch = set(jaxpr.invars[len(jaxpr.invars) - batch_leaves:])
  roots: dict[Any, frozenset] = {}
  forward: set[Any] = set()
  saved: set[Any] = set()
  for eqn in jaxpr.eqns:
    inputs = [v for v in eqn.invars if isinstance(v, jex_core.Var)]
    stack = str(eqn.source_info.name_stack)
    if "transpose(" in stack:
      for v in inputs:
        saved |= {r for r in roots.get(v, ()) if r in forward}
    if not any(v in of_batch for v in inputs):
      continue
    of_batch.update(eqn.outvars)
    from_inputs = (frozenset().union(*(roots.get(v, frozenset()) for v in inputs))
                   if _is_pointwise(eqn) else None)
    for out in eqn.outvars:
      roots[out] = frozenset((out,)) if from_inputs is None else from_inputs
      if _is_forward(stack):
        forward.add(out)
  return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in saved)


def _is_pointwise(eqn: Any) -> bool:
  if eqn.primitive.name in _CALLS:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return all(_is_pointwise(e) for e in getattr(inner, "jaxpr", inner).eqns)
  return eqn.primitive.name in _POINTWISE
