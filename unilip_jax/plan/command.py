"""Runs --mode=plan: plans a config or sweeps over settings, writes plan.json and logs it as text."""

from collections.abc import Callable, Iterator, Mapping
import copy
from typing import Any

from absl import logging
from etils import epath

from unilip_jax.common import json_file
from unilip_jax.configs import listing
from unilip_jax.plan import batches, compiling, estimate, remedies, sweeping, topology

FILE = "plan.json"


def run(
    config: Any, workdir: str, topology_name: str, *, sweep: bool = False, tries: int = 12,
    codegen: bool = False, timeout: float = 3600.0
) -> dict[str, Any]:
  """Writes <workdir>/plan.json and returns its content.

  Args:
    config: of a run.
    workdir: local or gs:// folder.
    topology_name: see topology.py.
    sweep: search for better settings; see sweeping.sweep.
    tries: settings to try in a sweep.
    codegen: see estimate.plan.
    timeout: seconds for one compilation.
  """
  where = topology.parse(topology_name)
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  if sweep:
    result = sweeping.sweep(config, where, folder, tries=tries, timeout=timeout)
  else:
    config, chosen = batches.chosen(config, where)
    if chosen:
      logging.info("plan: chosen for %d chips: %s", where.size, listing.flags(chosen))
    plan = lambda config: estimate.plan(config, where, codegen=codegen, timeout=timeout)
    result = _with_the_faster_gather(config, plan(config) | {"chosen": chosen}, plan)
    if not result["fits"]:
      result |= remedies.find(
          config, where, lambda changed, devices: estimate.plan(changed, devices, timeout=timeout))
  json_file.write(folder / FILE, result)
  logging.info("%s\nwritten to %s", text(result), folder / FILE)
  return result


def _with_the_faster_gather(
    config: Any, first: dict[str, Any], plan: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
  """Plans mesh.gather="step" too where "layer" fits and gathers; returns the faster plan that fits.

  Returns:
    The plan, with "gathers": {mesh.gather: {"fits", "needed", "sent", "step_seconds"}} of both; "error"
    instead of them where the second one cannot be planned.
  """
  if not first["fits"] or config.mesh.gather != "layer" or first["mesh"]["fsdp"] == 1:
    return first
  changed = copy.deepcopy(config).unlock()
  changed.mesh.gather = "step"
  logging.info("plan: the same with mesh.gather=step")
  try:
    second = plan(changed) | {"chosen": first["chosen"] | {"mesh.gather": "step"}}
  except compiling.CompileError as error:  # the first plan stands
    failed = {"fits": False, "error": str(error).splitlines()[0]}
    return first | {"gathers": {"layer": _gather_row(first), "step": failed}}
  better = second["fits"] and second["time"]["step_seconds"] < first["time"]["step_seconds"]
  return (second if better else first) | {
      "gathers": {p["gather"]: _gather_row(p) for p in (first, second)}}


def _gather_row(plan: Mapping[str, Any]) -> dict[str, Any]:
  row = {"fits": plan["fits"], "needed": plan["memory_per_device"]["needed"]}
  if plan["fits"]:
    row |= {"sent": plan["collectives"]["sent_bytes_per_device"],
            "step_seconds": plan["time"]["step_seconds"]}
  return row


def text(plan: Mapping[str, Any]) -> str:
  """Returns a plan as lines of text: fit, memory, FLOPs, collectives, time."""
  return "\n".join(_lines(plan))


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
  mesh = " × ".join(f"{k} {v}" for k, v in plan["mesh"].items())
  memory, flops = plan["memory_per_device"], plan["flops"]
  yield (f"{plan['stage']}:{plan['size']} on {plan['topology']} ({plan['chips']} chips): mesh {mesh}, "
         f"batch {plan['batch_size']}, remat {_remat(plan)}, gather {plan['gather']}")
  yield (f"  {'FITS' if plan['fits'] else 'DOES NOT FIT'}: {_size(memory['needed'])} of "
         f"{_size(memory['available'])} per device; {plan['made_by']}")
  if plan.get("chosen"):
    yield f"  chosen for {plan['chips']} chips: {listing.flags(plan['chosen'])}"
  for name, row in plan.get("gathers", {}).items():
    if "error" in row:
      yield f"  mesh.gather={name}: {row['error']}"
      continue
    cost = (f"{row['step_seconds'] * 1e3:.1f} ms, {_size(row['sent'])} sent" if row["fits"]
            else "does not fit")
    yield f"  mesh.gather={name}: {_size(row['needed'])} per device, {cost}"
  yield from _remedy(plan)
  for name, value in memory["split"].items():
    if value:
      yield f"    {name:<27} {_size(value):>10}"
  yield (f"  FLOPs of a step: model {flops['model']:.3g}, hardware {flops['hardware']:.3g} "
         f"({flops['hardware_per_device']:.3g} per device)")
  for kind, row in plan["collectives"]["by_kind"].items():
    yield (f"  {kind}: {row['calls']:.0f} calls, {_size(row['bytes'])} per device, "
           f"{_size(row['sent_bytes'])} sent")
  if time := plan.get("time"):
    computing = ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in time["computation_seconds"].items())
    yield (f"  estimated step: {time['step_seconds'] * 1e3:.1f} ms (computation: {computing}; "
           f"communication {time['communication_seconds'] * 1e3:.1f} ms, added as if nothing hid it)")
    yield (f"  MFU {time['mfu']:.1%}, {time['images_per_second']:.0f} images/s, "
           f"{time['chip_hours']:.0f} chip hours for {time['total_steps']} steps")
    yield f"  based on: {time['rests_on']}. An estimate: no such chip was used"
  for row in plan.get("sweep", ()):
    result = (f"{row['images_per_second']:8.1f} images/s  {_size(row['needed']):>9}" if row["fits"]
              else f"does not fit: {_size(row['needed'])}" if row.get("needed") else row["error"])
    yield (f"  tried: data {row['data']:>4} fsdp {row['fsdp']:>3} batch {row['batch_size']:>6} "
           f"remat {row['policy']:<5} {result}")
  if "recommended" in plan:
    yield f"  recommended: {plan['recommended']}"


def _remedy(plan: Mapping[str, Any]) -> Iterator[str]:
  """Yields what would fit, of a plan that does not."""
  if "tried" not in plan:
    return
  if fitting := plan["would_fit"]:
    chips = f"--topology={fitting['topology']} " if fitting["topology"] != plan["topology"] else ""
    yield (f"  WOULD FIT: {chips}{fitting['flags']} ({_size(fitting['needed'])} of "
           f"{_size(fitting['available'])}, planned)")
  for row in plan["tried"]:
    if not row["fits"]:
      why = f"needs {_size(row['needed'])}" if "needed" in row else row["error"]
      yield f"  does not fit either: {row['topology']} {row['flags']}: {why}"


def _remat(plan: Mapping[str, Any]) -> str:
  return ", ".join(f"{k} {v}" for k, v in plan["remat"].items() if v != "none") or "none"


def _size(count: float) -> str:
  """Formats bytes with three digits, 1 KB = 1024 bytes."""
  units = ("B", "KB", "MB", "GB", "TB")
  power = max(p for p in range(len(units)) if p == 0 or abs(count) >= 1024**p)
  return f"{count / 1024**power:.{3 if power else 6}g} {units[power]}"
