"""What every benchmark shares: the machine's name, interleaved timing, one JSON schema.

A result is {"benchmark", "command", "machine", "versions", "settings", "rows": [{"name", "unit",
"median", "best", "spread", "repeats"}]}; spread is (p75 − p25) / median.
"""

from collections.abc import Callable, Mapping
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any

import numpy as np

_PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "diffusers", "grain", "numpy", "pillow")


def machine() -> dict[str, Any]:
  """Names this machine: processor, cores used, and the accelerator if JAX sees one."""
  cpu = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    names = [l.split(":", 1)[1].strip() for l in info.read_text().splitlines()
             if l.startswith("model name")]
    cpu = names[0] if names else cpu
  result = {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
  if "jax" in sys.modules:
    device = sys.modules["jax"].devices()[0]
    result["device"] = device.device_kind if device.platform != "cpu" else "cpu"
  return result


def versions() -> dict[str, str]:
  """Installed versions of the packages that matter to a measurement."""
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "absent"
  return found


def pin(cores: int) -> None:
  """Keeps this process, JAX's and PyTorch's threads alike, on `cores` cores; before JAX's first use."""
  available = sorted(os.sched_getaffinity(0))
  if cores > len(available):
    raise SystemExit(f"--threads={cores}: this machine has {len(available)} cores")
  os.sched_setaffinity(0, available[:cores])


def allocator() -> dict[str, str]:
  """Settings of glibc's allocator, which decide what large temporary arrays cost."""
  return {"glibc_tunables": os.environ.get("GLIBC_TUNABLES", "")}


def interleave(
    runs: Mapping[str, Callable[[], None]], *, repeats: int, warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
  """Times each function `repeats` times, taking turns, so that a busy machine hurts all alike.

  Args:
    runs: name -> a function that returns when its work is done (block on device results).
    repeats: timed calls of each.
    warmup: untimed calls of each before.
    clock: seconds; `time.process_time` where one pinned core does the work of a busy machine.

  Returns:
    name -> seconds per call.
  """
  for run in runs.values():
    for _ in range(warmup):
      run()
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(repeats):
    for name, run in runs.items():
      start = clock()
      run()
      seconds[name].append(clock() - start)
  return seconds


def row(name: str, values, unit: str, higher_is_better: bool = False) -> dict[str, Any]:
  """One result row: median, best and spread of repeated measurements."""
  values = np.asarray(values, np.float64)
  low, high = np.percentile(values, [25, 75])
  median = float(np.median(values))
  return {"name": name, "unit": unit, "median": median,
          "best": float(values.max() if higher_is_better else values.min()),
          "spread": float((high - low) / median), "repeats": len(values)}


def write(path: str | pathlib.Path, benchmark: str, settings: Mapping[str, Any], rows: list) -> None:
  """Writes the JSON and prints the rows as a table."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({
      "benchmark": benchmark, "command": "python -m " + " ".join(
          [f"benchmarks.{benchmark}", *sys.argv[1:]]),
      "machine": machine(), "versions": versions(), "settings": dict(settings), "rows": rows,
  }, indent=2) + "\n")
  width = max(len(r["name"]) for r in rows)
  for r in rows:
    print(f"{r['name']:<{width}}  {r['median']:10.4g} {r['unit']}  best {r['best']:.4g}  "
          f"spread {r['spread']:.1%}  n={r['repeats']}")
  print(f"written to {path}")
