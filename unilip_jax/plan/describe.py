"""A plan as text for people."""

from collections.abc import Mapping
from typing import Any

_UNITS = ("B", "KB", "MB", "GB", "TB")


def text(plan: Mapping[str, Any]) -> str:
  """Several lines: fit, memory, FLOPs, collectives, time, cost, and what they rest on."""
  mesh = " × ".join(f"{k} {v}" for k, v in plan["mesh"].items())
  memory = plan["memory_per_device"]
  remat = ", ".join(f"{k} {v}" for k, v in plan["remat"].items() if v != "none") or "none"
  lines = [
      f"{plan['stage']}:{plan['size']} on {plan['topology']} ({plan['chips']} chips): mesh {mesh}, "
      f"batch {plan['batch_size']}, remat {remat}",
      f"  {'FITS' if plan['fits'] else 'DOES NOT FIT'}: {size(memory['needed'])} of "
      f"{size(memory['available'])} per device; {plan['made_by']}"]
  lines += [f"    {name:<13} {size(value):>10}" for name, value in memory["split"].items() if value]
  flops = plan["flops"]
  lines.append(f"  FLOPs of a step: model {flops['model']:.3g}, hardware {flops['hardware']:.3g} "
               f"({flops['hardware_per_device']:.3g} per device)")
  for kind, row in plan["collectives"]["by_kind"].items():
    lines.append(f"  {kind}: {row['calls']:.0f} calls, {size(row['bytes'])} per device, "
                 f"{size(row['sent_bytes'])} sent")
  if "time" in plan:
    lines += _time(plan["time"])
  if "sweep" in plan:
    lines += ["  tried:"] + [f"    {line}" for line in sweep_table(plan["sweep"])]
    lines.append(f"  recommended: {plan['recommended']}")
  return "\n".join(lines)


def _time(time: Mapping[str, Any]) -> list[str]:
  computing = ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in time["computation_seconds"].items())
  return [
      f"  estimated step: {time['step_seconds'] * 1e3:.1f} ms (computation: {computing}; communication "
      f"{time['communication_seconds'] * 1e3:.1f} ms, added as if nothing hid it)",
      f"  MFU {time['mfu']:.1%}, {time['images_per_second']:.0f} images/s, {time['chip_hours']:.0f} chip "
      f"hours for {time['total_steps']} steps",
      f"  rests on: {time['rests_on']}. An estimate: no such chip was used"]


def sweep_table(rows: list[Mapping[str, Any]]) -> list[str]:
  """One line per try."""
  lines = []
  for row in rows:
    remat = "/".join(sorted(set(row["remat"].values()))) if row.get("remat") else "none"
    state = (f"{row['images_per_second']:8.1f} images/s  {size(row['needed']):>9}" if row["fits"]
             else f"does not fit: {size(row['needed'])}" if row.get("needed") else row["error"])
    lines.append(f"data {row['data']:>4} fsdp {row['fsdp']:>3} batch {row['batch_size']:>6} "
                 f"remat {remat:<5} {state}")
  return lines


def size(count: float) -> str:
  """Bytes with three digits, 1 KB = 1024."""
  value = float(count)
  for unit in _UNITS:
    if abs(value) < 1024 or unit == _UNITS[-1]:
      return f"{value:.3g} {unit}" if unit != "B" else f"{value:.0f} B"
    value /= 1024
  raise AssertionError
