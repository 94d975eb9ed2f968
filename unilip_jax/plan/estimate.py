"""Plans one config: whether it fits, what a step sends, how long it takes, what the stage costs.

Nothing is measured here. On TPUs memory and collectives are read from the compiled program, times are
estimates; for GPUs all is counted from shapes (gpu.py). plan.json states the basis of each figure.
"""

from collections.abc import Mapping, Sequence
import copy
import json
from typing import Any

from unilip_jax.configs import base
from unilip_jax.ops import backend
from unilip_jax.plan import collectives, compiling, gpu, hlo, memory, timing, topology
from unilip_jax.training import step as step_lib

_BASIS = {
    "roofline": "roofline of the compiled, scheduled program: every fusion at the longer of its products "
                "at peak and its HBM traffic at full bandwidth; a lower bound",
    "compiler": "cycles that the TPU compiler estimated for every fusion, at the chip's clock",
    "traced": "lower bound from the traced step: products at peak or full bandwidth, all else free",
}
# Fields that do not change the FLOPs of the model's own work.
_NO_FLOPS = ("mesh", "remat", "eval", "sample", "sample_set", "checkpoint_every_steps",
             "grad_accum_steps")
_FLOPS_BATCH = 8  # images that are traced to count FLOPs; they are proportional to the batch
_counted: dict[str, float] = {}  # FLOPs by config, for sweeps, whose tries have the same count


def plan(
    config: Any, where: topology.Topology, *, codegen: bool = False, timeout: float = 3600.0
) -> dict[str, Any]:
  """Plans `config` on `where`.

  Args:
    config: of a run.
    where: TPU slices, or GPUs.
    codegen: TPUs: compile to machine code, for the compiler's own cycle estimates.
    timeout: seconds for the compiler.

  Returns:
    The content of plan.json: numbers and strings, bytes and seconds.

  Raises:
    ValueError: for a config that cannot run there; for a TPU, without libtpu.
    compiling.CompileError: if the compiler fails.
    RuntimeError: if the figures are impossible: more FLOPs than the chips can compute.
  """
  config = without_files(config)
  if where.chip.kind == "gpu":
    counted = gpu.plan(config, where)
    return _result(config, where, counted["traced"], counted["memory"], {
        "traced": counted["seconds"]}, counted["collectives"], "traced; nothing was compiled")
  topology.require_compiler(where)
  done = compiling.compile_step(config, where, codegen=codegen, timeout=timeout)
  split = {**done.traced["state_bytes"], "batch": done.traced["batch_bytes"]}
  if done.refusal:
    split["activations and temporaries"] = max(0, done.refusal["needed"] - sum(split.values()))
    result = _result(config, where, done.traced, split, {}, [],
                     "the compiler refused it for lack of memory")
    return result | {"compile_seconds": done.seconds}
  assigned = memory.assigned_bytes(done.buffers)
  padding = assigned["arguments"] - sum(split.values())
  split |= {"activations and temporaries": assigned["temporaries"], "results": assigned["results"],
            "padding": padding}
  program = hlo.Program(done.text)
  work = timing.work(program, where.chip)
  seconds = {"roofline": work.roofline}
  if codegen:
    seconds["compiler"] = work.cycles / where.chip.clock
  result = _result(config, where, done.traced, split, seconds, collectives.find(program),
                   "compiled to machine code" if codegen else
                   "compiled to schedule and buffer assignment; no code was generated")
  return result | {
      "compiled": {"compiled_flops_per_device": work.flops, "hbm_bytes_per_device": work.hbm_bytes,
                   "buffer_assignment": assigned},
      "trace_seconds": done.traced["seconds"], "compile_seconds": done.seconds}


def without_files(config: Any) -> Any:
  """Copies a config so that it needs no weights or data: planning reads shapes alone."""
  config = copy.deepcopy(config).unlock()
  config.text.tokenizer = "shapes"  # only the number of its image slot is read, which changes no shape
  return config


def _result(
    config: Any, where: topology.Topology, traced: Mapping[str, Any], split: Mapping[str, float],
    seconds: Mapping[str, float], sends: Sequence[collectives.Collective], made_by: str
) -> dict[str, Any]:
  """Joins counts and estimates into one plan; `seconds` of computation are {} if it does not fit."""
  chip = where.chip
  needed = sum(split.values())
  links = collectives.summary(sends, where)
  result = {
      "topology": where.name, "chips": where.size, "stage": config.stage, "size": config.size,
      "mesh": dict(traced["mesh"]), "batch_size": config.batch_size,
      "part_multiple": config.data.part_multiple, "grad_accum_steps": config.grad_accum_steps,
      "remat": config.remat.to_dict(), "gather": config.mesh.gather, "made_by": made_by,
      "fits": bool(needed <= chip.hbm and seconds),
      "memory_per_device": {"needed": int(needed), "available": chip.hbm,
                            "split": {k: int(v) for k, v in split.items()}},
      "flops": {"model": model_flops(config, chip.kind), "hardware": traced["hardware_flops"],
                "hardware_per_device": traced["hardware_flops"] / where.size},
      "collectives": links}
  if seconds:
    result["time"] = _times(config, where, result["flops"], seconds, links["seconds_if_not_hidden"])
  return result


def _times(
    config: Any, where: topology.Topology, flops: Mapping[str, float], seconds: Mapping[str, float],
    sending: float
) -> dict[str, Any]:
  basis = next(k for k in ("compiler", "roofline", "traced") if k in seconds)
  computing = seconds[basis]
  step, bound = computing + sending, max(computing, sending)
  peak = where.chip.peak * where.size
  for name in ("model", "hardware"):
    if flops[name] > bound * peak * (1 + 1e-6):
      raise RuntimeError(
          f"plan: {name} FLOPs {flops[name]:.4g} in {bound:.4g} s are {flops[name] / bound / peak:.0%} of "
          f"the peak of {where.name}, which is impossible: a bug in the count or the estimate")
  return {
      "step_seconds": step, "step_seconds_if_communication_is_hidden": bound,
      "computation_seconds": dict(seconds), "communication_seconds": sending,
      "rests_on": f"{_BASIS[basis]}; collectives by ring over the links, not hidden",
      "mfu": flops["model"] / step / peak, "images_per_second": config.batch_size / step,
      "chip_hours": step * config.total_steps * where.size / 3600, "total_steps": config.total_steps}


def model_flops(config: Any, platform: str) -> float:
  """Counts FLOPs of the model's own work in one update: frozen parts forward only, nothing recomputed."""
  unit = config.copy_and_resolve_references().unlock()
  if not config.data.edit_share:  # else the mixture depends on the batch
    unit.batch_size = _FLOPS_BATCH
  default = base.get_config()
  for name in _NO_FLOPS:
    unit[name] = default[name]
  key = json.dumps([platform, unit.to_dict()], default=str, sort_keys=True)
  if key not in _counted:
    with backend.planning(platform):
      _counted[key] = step_lib.step_flops(unit)(unit.total_steps)
  return _counted[key] * config.batch_size / unit.batch_size
