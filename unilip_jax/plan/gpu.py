"""Planning for GPUs by shapes and FLOPs: the traced step, nothing compiled.

Time is a lower bound: every product takes the longer of its FLOPs at peak and its operands' traffic, all
else is free. With accumulation one micro-batch is counted, as often as a step runs it. Memory is the
counted state, gradients, and an estimate of what the backward pass keeps.
"""

import copy
import math
from typing import Any

import jax

from unilip_jax import tasks
from unilip_jax.data import batch as batch_lib
from unilip_jax.ops import backend
from unilip_jax.optim import update
from unilip_jax.plan import collectives, memory, topology
from unilip_jax.training import flops, initial_state

_COPIES = 2  # a product's result and its gradient are alive together


def plan(config: Any, where: topology.Topology) -> dict[str, Any]:
  """Counts a step on `where`.

  Returns:
    {"traced": as of compiling.compile_step, "memory": split in bytes per device, "seconds": the lower
    bound of computation, "collectives": list of collectives.Collective}.

  Raises:
    ValueError: for a config that does not fit the devices.
  """
  from unilip_jax.data import batch as batch_lib

  mesh = topology.mesh(where, config)
  batch_lib.check_divides(config, mesh)
  update.check_grad_accum_steps(config)
  times = config.grad_accum_steps
  with backend.planning("gpu", where.chip.device_kind):
    task = tasks.make(_micro(config))
    abstract = initial_state.abstract_state(task, config, mesh)
    batch = task.batch_spec(config.batch_size // times)
    jaxpr = jax.make_jaxpr(task.train_step)(abstract, batch)
  chip, leaves = where.chip, jax.tree.leaves(batch)

  def seconds(eqn: Any, count: float) -> float:
    exact = all(str(v.aval.dtype) == "float32" for v in eqn.invars[:2])
    moved = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (*eqn.invars, *eqn.outvars))
    peak = chip.float32_peak if exact else chip.peak
    return max(count / peak, moved / chip.hbm_bandwidth) / mesh.size

  state = memory.state_bytes(abstract)
  gradients = memory.tree_bytes(abstract.params)
  saved = memory.traced_saved_bytes(jaxpr, len(leaves)) // mesh.size
  batch_bytes = sum(x.size * x.dtype.itemsize for x in leaves) // mesh.size
  return {
      "traced": {
          "mesh": dict(mesh.shape), "state_bytes": state, "batch_bytes": batch_bytes,
          "hardware_flops": times * flops.count_jaxpr(jaxpr), "saved_bytes_estimate": saved},
      "memory": {**state, "batch": times * batch_bytes, "activations": saved,
                 "temporaries": min(times, 2) * gradients + _COPIES * _largest_bytes(jaxpr, mesh.size)},
      "seconds": times * flops.count_jaxpr(jaxpr, seconds),
      "collectives": collectives.implied(abstract, mesh, config)}


def _micro(config: Any) -> Any:
  """The config of one micro-batch: a step is as many of them as `accumulate` says."""
  micro = copy.deepcopy(config)
  parts = batch_lib.part_sizes(config)
  micro.batch_size //= config.grad_accum_steps
  micro.accumulate = 1
  if len(parts) > 1:  # the same mixture, to the example
    micro.data.part_multiple = parts["edit"] // config.grad_accum_steps
  return micro


def _largest_bytes(jaxpr: Any, devices: int) -> int:
  """Bytes per device of the largest value of the step, outside of loops."""
  sizes = (math.prod(v.aval.shape) * v.aval.dtype.itemsize
           for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name != "scan" for v in eqn.outvars
           if hasattr(v.aval.dtype, "itemsize"))
  return max(sizes, default=0) // devices
