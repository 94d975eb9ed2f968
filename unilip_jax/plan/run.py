"""Plans one run: does it fit, what does it send, how long does a step take, what does the stage cost.

Nothing is measured here. Memory and collectives of TPUs are the compiler's, their times estimates; GPUs
are counted from shapes (gpu.py). plan.json says of each figure what it rests on.
"""

from collections.abc import Mapping
import copy
import functools
import json
from typing import Any

from absl import logging
from etils import epath

from unilip_jax.ops import backend
from unilip_jax.plan import collectives, compiling, gpu, hlo, memory, timing, topology
from unilip_jax.training import step as step_lib

FILE = "plan.json"
_RESTS_ON = {
    "roofline": "roofline of the compiled, scheduled program: every fusion at the longer of its products "
                "at peak and its HBM traffic at full bandwidth; a lower bound",
    "compiler": "cycles that the TPU compiler estimated for every fusion, at the chip's clock",
    "traced": "lower bound from the traced step: products at peak or full bandwidth, all else free",
}


def plan(
    config: Any, where: topology.Topology, *, codegen: bool = False, timeout: float = 3600.0
) -> dict[str, Any]:
  """Plans `config` on `where`.

  Args:
    config: of a run.
    where: TPU slices, or GPUs.
    codegen: TPUs: compile down to machine code, for the compiler's own cycle estimates.
    timeout: seconds for the compiler.

  Returns:
    What plan.json holds; all plain numbers and strings, bytes and seconds.

  Raises:
    ValueError: for a config that cannot run there.
    ValueError: without libtpu, for a TPU.
    RuntimeError: if the figures are impossible: more FLOPs than the chips can make.
  """
  config = without_files(config)
  if where.chip.kind == "gpu":
    counted = gpu.plan(config, where)
    return _result(config, where, counted["traced"], counted["memory"], {
        "traced": counted["seconds"]}, counted["collectives"], "traced; nothing was compiled")
  topology.require_compiler(where)
  done = compiling.compile_step(config, where, codegen=codegen, timeout=timeout)
  if done.refusal:
    split = {**done.traced["state_bytes"], "batch": done.traced["batch_bytes"]}
    split["activations and temporaries"] = max(0, done.refusal["needed"] - sum(split.values()))
    result = _result(config, where, done.traced, split, {}, [],
                     "the compiler refused it for lack of memory")
    return result | {"compile_seconds": done.seconds}
  program = hlo.Program(done.text)
  assigned = memory.assigned_bytes(done.buffers)
  saved = min(memory.saved_bytes(program), assigned["temporaries"])
  split = {**done.traced["state_bytes"], "batch": done.traced["batch_bytes"], "activations": saved,
           "temporaries": assigned["temporaries"] - saved, "results": assigned["results"]}
  split["padding"] = assigned["arguments"] - sum(
      v for k, v in split.items() if k not in ("activations", "temporaries", "results"))
  work = timing.summary(timing.work(program, where.chip), where.chip)
  result = _result(config, where, done.traced, split, work.pop("seconds"), collectives.find(program),
                   "compiled to machine code" if done.stats else
                   "compiled to schedule and buffer assignment; no code was generated")
  result |= {"compiled": work | {"buffer_assignment": assigned, "memory_analysis": done.stats},
             "compile_seconds": done.seconds}
  return result


def without_files(config: Any) -> Any:
  """A copy that needs no weights or data: planning reads shapes alone."""
  config = copy.deepcopy(config).unlock()
  config.text.tokenizer = "shapes"  # only the number of its image slot is read, which changes no shape
  return config


def _result(config, where, traced, split, seconds: Mapping[str, float], found, made_by) -> dict[str, Any]:
  """Joins counts and estimates into one plan."""
  chip = where.chip
  needed = sum(split.values())
  links = collectives.summary(found, where)
  result = {
      "topology": where.name, "chips": where.size, "stage": config.stage, "size": config.size,
      "mesh": dict(traced["mesh"]), "batch_size": config.batch_size,
      "grad_accum_steps": config.grad_accum_steps, "remat": config.remat.to_dict(), "made_by": made_by,
      "fits": bool(needed <= chip.hbm and seconds),
      "memory_per_device": {"needed": int(needed), "available": chip.hbm,
                            "split": {k: int(v) for k, v in split.items()}},
      "saved_bytes_estimate": traced["saved_bytes_estimate"],
      "flops": {"model": model_flops(config, chip.kind), "hardware": traced["hardware_flops"],
                "hardware_per_device": traced["hardware_flops"] / where.size},
      "collectives": links}
  if seconds:
    rests_on = next(k for k in ("compiler", "roofline", "traced") if k in seconds)
    result["time"] = _times(config, where, result["flops"], dict(seconds), rests_on,
                            links["seconds_if_not_hidden"])
  return result


def _times(config, where, flops, seconds, rests_on, sending) -> dict[str, Any]:
  computing = seconds[rests_on]
  step, bound = computing + sending, max(computing, sending)
  peak = where.chip.peak * where.size
  for name in ("model", "hardware"):
    if flops[name] > bound * peak * (1 + 1e-6):
      raise RuntimeError(
          f"plan: {name} FLOPs {flops[name]:.4g} in {bound:.4g} s are {flops[name] / bound / peak:.0%} of "
          f"the peak of {where.name}, which is impossible: a bug in the count or the estimate")
  return {
      "step_seconds": step, "step_seconds_if_communication_is_hidden": bound,
      "computation_seconds": seconds, "communication_seconds": sending,
      "rests_on": f"{_RESTS_ON[rests_on]}; collectives by ring over the links, not hidden",
      "mfu": flops["model"] / step / peak, "images_per_second": config.batch_size / step,
      "chip_hours": step * config.total_steps * where.size / 3600, "total_steps": config.total_steps}


def model_flops(config: Any, platform: str) -> float:
  """FLOPs of the model's own work in one update: frozen parts forward only, nothing made twice.

  They are in proportion to the batch, which makes one trace do for all sizes of it.
  """
  unit = 2 * config.data.part_multiple if config.data.edit_share else 8
  shares = config.to_dict()
  for name in ("mesh", "remat", "eval", "sample", "sample_set", "checkpoint_every_steps",
               "grad_accum_steps"):
    shares.pop(name)
  if config.data.edit_share:  # the mixture depends on the batch
    unit = config.batch_size
  shares["batch_size"] = unit
  return _unit_flops(json.dumps(shares, default=str, sort_keys=True), platform, _Holder(config, unit)
                     ) * config.batch_size / unit


class _Holder:
  """Carries a config past lru_cache, which looks at the text only."""

  def __init__(self, config: Any, batch_size: int):
    self.config, self.batch_size = config, batch_size

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, _Holder)

  def __hash__(self) -> int:
    return 0


@functools.lru_cache(maxsize=64)
def _unit_flops(text: str, platform: str, holder: _Holder) -> float:
  del text
  config = copy.deepcopy(holder.config).unlock()
  config.batch_size, config.grad_accum_steps = holder.batch_size, 1
  with backend.planning(platform):
    return step_lib.step_flops(config)(config.total_steps)


def run(
    config: Any, workdir: str, topology_name: str, *, sweep: bool = False, tries: int = 12,
    codegen: bool = False, timeout: float = 3600.0
) -> dict[str, Any]:
  """Plans or sweeps, writes plan.json and returns it; what was found goes to the log."""
  from unilip_jax.plan import describe, sweeping

  where = topology.parse(topology_name)
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  if sweep:
    result = sweeping.sweep(config, where, folder, tries=tries, timeout=timeout)
  else:
    result = plan(config, where, codegen=codegen, timeout=timeout)
  (folder / FILE).write_text(json.dumps(result, indent=2) + "\n")
  logging.info("%s\nwritten to %s", describe.text(result), folder / FILE)
  return result
