"""Shared by all benchmarks: the machine's name, interleaved timing, one JSON schema.

A result is {"benchmark", "command", "machine", "versions", "settings", "rows": [{"name", "unit",
"median", "best", "spread", "repeats"}]}; spread is (p75 − p25) / median. A row may have more entries
(model_flops, mfu, peak_bytes); one that could not be measured has "error" instead of numbers.
"""

from collections.abc import Callable, Mapping
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any

import numpy as np

_PACKAGES = (
    "jax", "jaxlib", "libtpu", "flax", "torch", "transformers", "diffusers", "grain", "numpy", "pillow")


def machine() -> dict[str, Any]:
  """Names this machine: processor, cores used, and the accelerator that JAX uses."""
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


def about(benchmark: str, command: str = "") -> dict[str, Any]:
  """Returns the first entries of every result: command, machine, versions and time (UTC).

  Args:
    benchmark: its name.
    command: makes the result again; "" is the command of this process.
  """
  if not command:
    command = " ".join([f"python -m benchmarks.{benchmark}", *sys.argv[1:]])
  return {"benchmark": benchmark, "command": command, "machine": machine(), "versions": versions(),
          "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def save(path: str | pathlib.Path, result: Mapping[str, Any]) -> None:
  """Writes a result as JSON; creates its folder."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1) + "\n")


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


def label() -> str:
  """Returns JAX's device as a part of a file name: "cpu", "nvidia_h100_80gb_hbm3"."""
  device = sys.modules["jax"].devices()[0]
  return "cpu" if device.platform == "cpu" else device.device_kind.replace(" ", "_").lower()


def out_of_memory(error: Exception) -> str | None:
  """Returns the text to write instead of a number if memory ran out on either side, else None."""
  text = str(error)
  if not isinstance(error, MemoryError) and not any(
      sign in text.lower() for sign in ("resource_exhausted", "out of memory", "can't allocate memory")):
    return None
  return "out of memory: " + (text.splitlines() or [""])[0][:200]


def measure(
    makers: Mapping[str, Callable[[], Callable[[], None]]], *, repeats: int, warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, list[float]], dict[str, str]]:
  """Runs `interleave`; reports the functions that run out of memory instead of timing them.

  Args:
    makers: name -> a function that prepares and returns what `interleave` takes.
    repeats: timed calls of each.
    warmup: untimed calls of each before.
    clock: see `interleave`.

  Returns:
    (name -> seconds per call of those that ran, name -> error of those that ran out of memory).
  """
  ready: dict[str, Callable[[], None]] = {}
  errors: dict[str, str] = {}
  for name, make in makers.items():
    run = None
    try:
      run = make()
      for _ in range(warmup):
        run()
      ready[name] = run
    except Exception as error:
      if (reason := out_of_memory(error)) is None:
        raise
      errors[name] = reason
    if name in errors:
      del run
      gc.collect()
      if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
  return interleave(ready, repeats=repeats, warmup=0, clock=clock), errors


def failed(name: str, unit: str, error: str) -> dict[str, Any]:
  """Returns the row of a measurement that failed."""
  return {"name": name, "unit": unit, "error": error}


def compared(
    name: str, seconds: Mapping[str, list[float]], errors: Mapping[str, str], *, work: float,
    unit: str, first: str = "unilip_jax", extra: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
  """Returns the rows of one question: a rate per side, and the speed of `first` over each other one.

  Args:
    name: of the question.
    seconds: of `measure`.
    errors: of `measure`.
    work: units that one call does.
    unit: of the rate, e.g. "images/s".
    first: the side that is compared with all others.
    extra: more entries of its row.
  """
  rows = [row(f"{name}, {who}", [work / s for s in values], unit, True)
          | (dict(extra or {}) if who == first else {}) for who, values in seconds.items()]
  rows += [failed(f"{name}, {who}", unit, error) for who, error in errors.items()]
  if first in seconds:
    rows += [row(f"{name}, {first} / {who}", np.array(values) / np.array(seconds[first]), "×", True)
             for who, values in seconds.items() if who != first]
  return rows


def row(name: str, values, unit: str, higher_is_better: bool = False) -> dict[str, Any]:
  """Returns a row: median, best and spread of repeated measurements."""
  values = np.asarray(values, np.float64)
  low, high = np.percentile(values, [25, 75])
  median = float(np.median(values))
  return {"name": name, "unit": unit, "median": median,
          "best": float(values.max() if higher_is_better else values.min()),
          "spread": float((high - low) / median), "repeats": len(values)}


def write(path: str | pathlib.Path, benchmark: str, settings: Mapping[str, Any], rows: list) -> None:
  """Writes the JSON and prints the rows as a table."""
  head = about(benchmark)
  head["machine"]["load"] = [round(x, 2) for x in os.getloadavg()]
  save(path, head | {"settings": dict(settings), "rows": rows})
  width = max(len(r["name"]) for r in rows)
  for r in rows:
    if "error" in r:
      print(f"{r['name']:<{width}}  {r['error']}")
      continue
    print(f"{r['name']:<{width}}  {r['median']:10.4g} {r['unit']}  best {r['best']:.4g}  "
          f"spread {r['spread']:.1%}  n={r['repeats']}")
  print(f"written to {path}")
