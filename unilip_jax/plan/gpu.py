"""Plans for GPUs from shapes and FLOPs of the traced step; nothing is compiled.

Time is a lower bound: every dot or convolution takes the longer of its FLOPs at peak and the traffic of its
arrays, all else is free. With gradient accumulation one micro-batch is counted, times their number. Memory
is the counted state, gradients, an estimate of what the backward pass keeps, and gathered weights with
mesh.gather="step".
"""

import copy
import math
from typing import Any

import jax
import numpy as np

from unilip_jax import tasks
from unilip_jax.data import batch as batch_lib
from unilip_jax.ops import backend
from unilip_jax.optim import update
from unilip_jax.plan import collectives, memory, topology
from unilip_jax.training import flops, initial_state

_COPIES = 2  # the largest result and its gradient are alive together


def plan(config: Any, where: topology.Topology) -> dict[str, Any]:
  """Counts a step on `where`.

  Returns:
    {"traced": as compiling.Compiled.traced, "memory": split in bytes per device, "seconds": lower bound
    of computation, "collectives": list of collectives.Collective}.

  Raises:
    ValueError: for a config that does not fit the devices.
  """
  mesh = topology.mesh(where, config)
  batch_lib.check_divides(config, mesh)
  update.check_grad_accum_steps(config)
  times = config.grad_accum_steps
  with backend.planning("gpu", where.chip.device_kind):
    task = tasks.make(_micro_batch(config))
    abstract = initial_state.abstract_state(task, config, mesh)
    batch = task.batch_spec(config.batch_size // times)
    jaxpr = jax.make_jaxpr(task.train_step)(abstract, batch)
  chip = where.chip

  def seconds(eqn: Any, count: float) -> float:
    float32 = all(str(v.aval.dtype) == "float32" for v in eqn.invars[:2])
    high = eqn.params.get("precision") == (jax.lax.Precision.HIGH,) * 2
    moved = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (*eqn.invars, *eqn.outvars))
    rate = chip.rate(("high" if high else "highest") if float32 else "")
    return max(count / rate, moved / chip.hbm_bandwidth) / mesh.size

  state = memory.state_bytes(abstract)
  gradients = memory.tree_bytes(abstract.params)
  batch_bytes = memory.batch_bytes(batch, mesh.size)
  activations = memory.traced_saved_bytes(jaxpr, len(jax.tree.leaves(batch))) // mesh.size
  temporaries = (min(times, 2) * gradients + _COPIES * (_largest_bytes(jaxpr) // mesh.size)
                 + _gathered_bytes(abstract, config))
  return {
      "traced": {"mesh": dict(mesh.shape), "state_bytes": state, "batch_bytes": batch_bytes,
                 "hardware_flops": times * flops.count_jaxpr(jaxpr)},
      "memory": {**state, "batch": times * batch_bytes, "activations": activations,
                 "temporaries": temporaries},
      "seconds": times * flops.count_jaxpr(jaxpr, seconds),
      "collectives": collectives.implied(abstract, mesh, config)}


def _micro_batch(config: Any) -> Any:
  """Returns the config of one micro-batch, of which a step has `grad_accum_steps`."""
  micro = copy.deepcopy(config)
  parts = batch_lib.part_sizes(config)
  micro.batch_size //= config.grad_accum_steps
  micro.grad_accum_steps = 1
  if len(parts) > 1:  # the same mixture, to the example
    micro.data.part_multiple = parts["edit"] // config.grad_accum_steps
  return micro


def _gathered_bytes(abstract: Any, config: Any) -> int:
  """Returns the bytes of the weights that mesh.gather="step" holds on every device for a step."""
  if config.mesh.gather != "step":
    return 0
  width = np.dtype(config.dtype).itemsize
  return (width * sum(x.size for x in collectives.sharded(abstract.params))
          + sum(x.size * x.dtype.itemsize for x in collectives.sharded(abstract.frozen)))


def _largest_bytes(jaxpr: Any) -> int:
  """Returns the bytes of the largest value of the step, outside of loops."""
  avals = (v.aval for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name != "scan" for v in eqn.outvars)
  return max((math.prod(a.shape) * a.dtype.itemsize for a in avals if isinstance(a.dtype, np.dtype)),
             default=0)
