"""Memory of one device: counted from shardings, read from a compiled program, or estimated from a trace."""

import math
import re
from typing import Any

import jax
from jax.extend import core as jex_core
import numpy as np

from unilip_jax.optim import state as state_lib


def state_bytes(abstract: state_lib.TrainState) -> dict[str, int]:
  """Counts bytes per device of what a run keeps between steps, from the shardings.

  Returns:
    {"parameters", "frozen", "optimizer", "ema", "discriminator"}; "ema" with the old policy of reward
    training, the last with its optimizer.
  """
  return {
      "parameters": tree_bytes(abstract.params), "frozen": tree_bytes(abstract.frozen),
      "optimizer": tree_bytes(abstract.opt_state),
      "ema": tree_bytes(abstract.ema) + tree_bytes(abstract.old),
      "discriminator": tree_bytes(abstract.gan)}


def tree_bytes(tree: Any) -> int:
  """Counts bytes per device of arrays with shardings."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
             for leaf in jax.tree.leaves(tree))


def batch_bytes(batch: Any, devices: int) -> int:
  """Counts bytes per device of a batch that is split over all of them."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)) // devices


# ---- of a compiled program


def assigned_bytes(report: str) -> dict[str, int]:
  """Adds up XLA's buffer assignment of a device's memory.

  Args:
    report: text of the compiler's buffer assignment.

  Returns:
    {"arguments": the state and batch, donated ones hold the results too, "results": further results,
    "temporaries": all else}, tile padding included.

  Raises:
    ValueError: if no allocation is found.
  """
  totals = {"arguments": 0, "results": 0, "temporaries": 0}
  rows = re.findall(r"^allocation \d+: size (\d+), (.*)", report, re.MULTILINE)
  if not rows:
    raise ValueError("plan: the compiler's buffer assignment names no allocation")
  for size, use in rows:
    if "thread-local" in use or re.search(r"\bcolor [1-9]", use):
      continue  # on-chip memory, flags
    kind = ("arguments" if "parameter " in use else
            "results" if "maybe-live-out" in use else "temporaries")
    totals[kind] += int(size)
  return totals


def too_large(message: str) -> dict[str, float] | None:
  """Parses the compiler's error for a program that does not fit.

  Returns:
    {"needed": bytes, at least, "available": bytes}; None for any other message.
  """
  match = re.search(
      r"Ran out of memory in memory space hbm.*?Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
      message, re.S) or re.search(  # where temporaries alone are too much, before they are placed
          r"Ran out of memory on HBM, the total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) "
          r"exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
  if not match:
    return None
  scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  return {"needed": float(match[1]) * scale[match[2]],
          "available": float(match[3]) * scale[match[4]]}


# ---- of a trace, for devices that nothing is compiled for

# What a compiler recomputes inside the operation that reads it, rather than keep it.
_POINTWISE = frozenset(re.findall(r"\w+", """
abs add and broadcast_in_dim clamp convert_element_type copy cos div eq erf exp exp2 expand_dims ge gt
integer_pow iota is_finite le log log1p logistic lt max min mul ne neg not optimization_barrier or pow
real reshape round rsqrt select_n sign sin slice split sqrt square squeeze stop_gradient sub tanh transpose
"""))
_CALLS = frozenset(("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"))


def traced_saved_bytes(jaxpr: Any, batch_leaves: int) -> int:
  """Estimates the bytes, over all devices, that the forward pass keeps for the backward pass.

  Kept are results of matrix multiplications, loops and reductions that depend on the batch; pointwise
  results are recomputed from these.

  Args:
    jaxpr: of (state, batch) -> anything.
    batch_leaves: number of the last inputs, which belong to the batch.
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
      if "jvp(" in stack and "transpose(" not in stack:
        forward.add(out)
  return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in saved)


def _is_pointwise(eqn: Any) -> bool:
  if eqn.primitive.name in _CALLS:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return all(_is_pointwise(e) for e in getattr(inner, "jaxpr", inner).eqns)
  return eqn.primitive.name in _POINTWISE
