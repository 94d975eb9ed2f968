"""FLOPs of a function, counted from its jaxpr, and of the machine: both parts of MFU.

Compiler cost analysis counts a scanned body once, so the count is made here: matrix products and
convolutions (2 FLOPs per multiply-add) × trip counts of the scans around them. Pointwise work does
not count, as in the model FLOPs utilisation of PaLM (arXiv 2204.02311, appendix B). What
rematerialisation recomputes is no work of the model's: count a function built with remat="none".
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
import time
from typing import Any

import jax
from jax.extend import core as jex_core
import jax.numpy as jnp

_MOVES = ("shuffle_by_convolution",)  # functions whose products only move values (ops/resample.py)

# Dense bf16 FLOP/s per device, vendors' data sheets; the first row whose name is part of
# `device_kind` counts, so that "v5 lite" stands before "v5".
_PEAK_BF16 = (
    ("TPU v6", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("A100", 312e12),
)
_CPU_SIDE = 1024  # of the product that measures a CPU: 2 GFLOP, tens of milliseconds


def count(fn: Callable[..., Any], *specs: Any) -> float:
  """FLOPs of one call.

  Args:
    fn: traceable; may be jitted, contain scans, gradients, custom derivatives.
    *specs: its arguments: arrays or ShapeDtypeStructs, in any pytree.

  Returns:
    FLOPs of all matrix products and convolutions, over all devices.

  Raises:
    ValueError: for a `while` loop around matrix products, whose trip count no one knows.
  """
  return count_jaxpr(jax.make_jaxpr(fn)(*specs).jaxpr, moves=False)


def count_jaxpr(
    jaxpr: Any, measure: Callable[[Any, float], float] | None = None, moves: bool = True) -> float:
  """FLOPs of one evaluation of `jaxpr` (open or closed).

  Args:
    jaxpr: as of jax.make_jaxpr.
    measure: (equation of a product, its FLOPs) -> what to add up in their place, e.g. seconds.
    moves: whether products that only move values count too: they are work, but none of a model's.
  """
  return sum(_count_equation(eqn, measure, moves) for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _count_equation(
    eqn: Any, measure: Callable[[Any, float], float] | None, moves: bool) -> float:
  name, params = eqn.primitive.name, eqn.params
  product = None
  if name == "dot_general":
    product = _dot_general(eqn)
  elif name == "conv_general_dilated":
    product = _convolution(eqn)
  elif name in ("dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper"):
    product = _fused_attention(eqn, backward="bwd" in name)
  if product is not None:
    return measure(eqn, product) if measure else product
  if name == "cond":  # a step takes one branch; the dearest is what the run settles on
    return max(count_jaxpr(branch, measure, moves) for branch in params["branches"])
  if name == "scan":
    return params["length"] * count_jaxpr(params["jaxpr"], measure, moves)
  if not moves and params.get("name") in _MOVES:
    return 0.0
  inner = sum(count_jaxpr(jaxpr, measure, moves) for jaxpr in _inner_jaxprs(params))
  if name == "while" and inner:
    raise ValueError(
        "flops.count: a while loop holds matrix products and its trip count is unknown; "
        "use jax.lax.scan or a fori_loop with static bounds")
  if name == "shard_map":  # its body is one device's share
    return inner * params["mesh"].size
  if name == "pallas_call":
    return inner * math.prod(params["grid_mapping"].grid)
  return inner


def _inner_jaxprs(params: Any) -> Iterator[Any]:
  """The jaxprs that a primitive's parameters hold: jit, remat, custom derivatives and so on."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, jex_core.ClosedJaxpr | jex_core.Jaxpr):
        yield item


def _dot_general(eqn: Any) -> float:
  (contracting, _), _ = eqn.params["dimension_numbers"]
  shape = eqn.invars[0].aval.shape
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracting)


def _convolution(eqn: Any) -> float:
  """Multiplications with the zeros that a dilated input inserts (strided backward) do not count."""
  kernel = eqn.invars[1].aval.shape
  out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  per_output = math.prod(kernel) / out_features / math.prod(eqn.params["lhs_dilation"])
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * per_output


def _fused_attention(eqn: Any, backward: bool) -> float:
  """cuDNN attention, q [B, Q, N, H] and k [B, S, K, H]: two products forward, four backward."""
  batch, queries, heads, head_dim = eqn.invars[0].aval.shape
  keys = eqn.invars[1].aval.shape[1]
  return (8.0 if backward else 4.0) * batch * heads * queries * keys * head_dim


def peak(devices: Sequence[jax.Device]) -> tuple[float | None, str]:
  """FLOP/s that `devices` reach together at best.

  Args:
    devices: of one kind.

  Returns:
    (FLOP/s or None where unknown, how it is known). Accelerators: dense bf16 of the data sheet,
    whatever the dtype of the run. CPU: measured once per process with a float32 product; virtual
    devices share the cores, so their number does not matter.
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
  """Best of several float32 products: what the cores give when nothing else runs on them."""
  side = _CPU_SIDE
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    x = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(8):
      begin = time.perf_counter()
      product(x, x).block_until_ready()
      seconds.append(time.perf_counter() - begin)
  return 2.0 * side**3 / min(seconds)
