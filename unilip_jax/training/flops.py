"""Counts the FLOPs of a function from its jaxpr, and gives the peak of devices: both parts of MFU.

The compiler's cost analysis counts a scanned body once. This count multiplies matrix multiplications and
convolutions (2 FLOPs per multiply-add) by the trip counts of the scans around them. Pointwise operations
do not count, as in the model FLOPs utilisation of PaLM (arXiv 2204.02311, appendix B). Recomputation by
rematerialisation is not work of the model: count a function built with remat="none".
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
import time
from typing import Any

import jax
from jax.extend import core as jex_core
import jax.numpy as jnp

_MOVES = ("shuffle_by_convolution",)  # functions whose multiplications only move values (ops/resample.py)

# Dense bf16 FLOP/s per device, from the vendors' data sheets. The first row whose name is part of
# `device_kind` is used, so "v5 lite" comes before "v5".
_PEAK_BF16 = (
    ("TPU v6", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("RTX 4090", 165e12),
)
_CPU_SIDE = 1024  # of the matrices that measure a CPU: 2 GFLOP, tens of milliseconds


def count(fn: Callable[..., Any], *specs: Any) -> float:
  """Counts the FLOPs of one call.

  Args:
    fn: traceable; may be jitted, contain scans, gradients, custom derivatives.
    *specs: its arguments: arrays or ShapeDtypeStructs, in any pytree.

  Returns:
    FLOPs of all matrix multiplications and convolutions, over all devices.

  Raises:
    ValueError: for a `while` loop around matrix multiplications, whose trip count is unknown.
  """
  return count_jaxpr(jax.make_jaxpr(fn)(*specs).jaxpr, moves=False)


def count_jaxpr(
    jaxpr: Any, measure: Callable[[Any, float], float] | None = None, moves: bool = True) -> float:
  """Counts the FLOPs of one evaluation of `jaxpr`, open or closed.

  Args:
    jaxpr: e.g. from jax.make_jaxpr.
    measure: (equation of a multiplication, its FLOPs) -> summand instead of the FLOPs, e.g. seconds.
    moves: whether multiplications that only move values count; they are not work of the model.
  """
  if isinstance(jaxpr, jex_core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  return sum(_count_equation(eqn, measure, moves) for eqn in jaxpr.eqns)


def _count_equation(
    eqn: Any, measure: Callable[[Any, float], float] | None, moves: bool) -> float:
  name, params = eqn.primitive.name, eqn.params
  flops = None
  if name == "dot_general":
    flops = _dot_general(eqn)
  elif name == "conv_general_dilated":
    flops = _convolution(eqn)
  elif name in ("dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper"):
    flops = _fused_attention(eqn, backward="bwd" in name)
  if flops is not None:
    return measure(eqn, flops) if measure else flops
  if name == "cond":  # a step takes one branch; most steps of a run take the most expensive
    return max(count_jaxpr(branch, measure, moves) for branch in params["branches"])
  if name == "scan":
    return params["length"] * count_jaxpr(params["jaxpr"], measure, moves)
  if not moves and params.get("name") in _MOVES:
    return 0.0
  inner = sum(count_jaxpr(jaxpr, measure, moves) for jaxpr in _inner_jaxprs(params))
  if name == "while" and inner:
    raise ValueError(
        "flops.count: a while loop holds matrix multiplications and its trip count is unknown; "
        "use jax.lax.scan or a fori_loop with static bounds")
  if name == "shard_map":  # its body is the share of one device
    return inner * params["mesh"].size
  if name == "pallas_call":
    return inner * math.prod(params["grid_mapping"].grid)
  return inner


def _inner_jaxprs(params: Any) -> Iterator[Any]:
  """Yields the jaxprs in a primitive's parameters: of jit, remat, custom derivatives and so on."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, jex_core.ClosedJaxpr | jex_core.Jaxpr):
        yield item


def _dot_general(eqn: Any) -> float:
  (contracting, _), _ = eqn.params["dimension_numbers"]
  shape = eqn.invars[0].aval.shape
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracting)


def _convolution(eqn: Any) -> float:
  """Counts a convolution without the zeros that a dilated input inserts (backward of a stride)."""
  kernel = eqn.invars[1].aval.shape
  out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  per_output = math.prod(kernel) / out_features / math.prod(eqn.params["lhs_dilation"])
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * per_output


def _fused_attention(eqn: Any, backward: bool) -> float:
  """Counts cuDNN attention of q [B, Q, N, H] and k [B, S, K, H]: 2 multiplications forward, 4 backward."""
  batch, queries, heads, head_dim = eqn.invars[0].aval.shape
  keys = eqn.invars[1].aval.shape[1]
  return (8.0 if backward else 4.0) * batch * heads * queries * keys * head_dim


def peak(devices: Sequence[jax.Device]) -> tuple[float | None, str]:
  """Returns the peak FLOP/s of `devices` together.

  Args:
    devices: of one kind.

  Returns:
    (FLOP/s or None if unknown, its source). Accelerators: dense bf16 of the data sheet, for every dtype of
    the run. CPU: measured once per process with a float32 matrix multiplication; virtual devices share the
    cores, so their number does not matter.
  """
  kind = devices[0].device_kind
  for name, flops in _PEAK_BF16:
    if name.lower() in kind.lower():
      return flops * len(devices), f"{len(devices)} × {kind}, {flops / 1e12:g} bf16 TFLOP/s each"
  if devices[0].platform == "cpu":
    flops = _measured_cpu_peak()
    return flops, f"CPU, measured {flops / 1e9:.0f} float32 GFLOP/s"
  return None, f"{kind}: peak FLOP/s unknown, no MFU"


@functools.cache
def _measured_cpu_peak() -> float:
  """Measures the best of several float32 multiplications: the FLOP/s of otherwise idle cores."""
  side = _CPU_SIDE
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    x = jnp.ones((side, side), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    seconds = []
    for _ in range(8):
      begin = time.perf_counter()
      matmul(x, x).block_until_ready()
      seconds.append(time.perf_counter() - begin)
  return 2.0 * side**3 / min(seconds)
