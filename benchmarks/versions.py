"""Compares the programs of two installed sets of JAX, Flax and libtpu: what became worse?

  python -m benchmarks.versions --after=OTHER_ENVIRONMENT/bin/python [--before=PYTHON]
      [--stages=gen2:1b,stage448:1b] [--topology=v5e:16x16]

Each interpreter plans the same train steps from this working tree. It needs the libtpu that its JAX's extra
[tpu] names (requirements-plan.txt); no TPU is used. Memory, FLOPs, bytes and the estimated time belong to
the compiled program and are the same on every machine; seconds to trace and to compile are this machine's.
Status 1 if something became worse.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks import harness

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_STAGES = "gen2:1b,stage448:1b"
_TIMES = ("trace CPU s", "compile s")
# Growth that counts. The time of one trace on a busy machine differs by a tenth from run to run.
_SPARE = {name: 0.25 for name in _TIMES}
_SPARE_OF_PROGRAM = 0.01


def measure(stage: str, topology_name: str) -> dict[str, float]:
  """Plans one stage, "gen2:1b", with the packages of this process."""
  from benchmarks import plan_table
  from unilip_jax.plan import estimate

  name, size = stage.split(":")
  config, where = plan_table.config_of(
      {"stage": name, "size": size, "topology": topology_name, "batch": "recipe"})
  plan = estimate.plan(config, where)
  if "time" not in plan:
    raise ValueError(f"{stage} does not fit {topology_name}: {plan['memory_per_device']}")
  links = plan["collectives"]["by_kind"]
  return {
      "memory MB": plan["memory_per_device"]["needed"] / 1e6,
      "temporaries MB": plan["memory_per_device"]["split"]["activations and temporaries"] / 1e6,
      "compiled GFLOPs": plan["compiled"]["compiled_flops_per_device"] / 1e9,
      "HBM traffic GB": plan["compiled"]["hbm_bytes_per_device"] / 1e9,
      "collectives": sum(row["calls"] for row in links.values()),
      "sent MB": sum(row["sent_bytes"] for row in links.values()) / 1e6,
      "computation ms": plan["time"]["computation_seconds"]["roofline"] * 1e3,
      "communication ms": plan["time"]["communication_seconds"] * 1e3,
      "trace CPU s": plan["trace_seconds"], "compile s": plan["compile_seconds"] - plan["trace_seconds"]}


def measure_with(python: str, stage: str, topology_name: str) -> dict[str, Any]:
  """Runs `measure` with another interpreter; {"versions", "row"}.

  Raises:
    RuntimeError: with its last lines, if it fails.
  """
  done = subprocess.run(
      [python, "-m", "benchmarks.versions", f"--one={stage}", f"--topology={topology_name}"],
      cwd=_ROOT, env=os.environ | {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu"},
      capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"{python}: {stage}: {done.stderr[-3000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def worse(before: dict[str, float], after: dict[str, float]) -> list[str]:
  """Names what grew by more than its spare part."""
  return [name for name, value in after.items()
          if value > before[name] * (1 + _SPARE.get(name, _SPARE_OF_PROGRAM))]


def table(rows: dict[str, Any]) -> str:
  """Returns a Markdown table of both sides of every stage."""
  lines = ["| stage | | before | after | change |", "|---|---|---|---|---|"]
  for stage, row in rows.items():
    bad = worse(row["before"], row["after"])
    for name, old in row["before"].items():
      new = row["after"][name]
      change = f"{new / old - 1:+.1%}" if old else f"{new - old:+g}"
      lines.append(f"| {stage} | {name} | {old:.4g} | {new:.4g} | {change}{' **worse**' * (name in bad)} |")
  return "\n".join(lines)


def main() -> int:
  """Measures both sides and compares them."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--before", default=sys.executable, help="a Python interpreter; default: this one")
  parser.add_argument("--after", help="the Python interpreter of the other environment")
  parser.add_argument("--stages", default=_STAGES, help=f"default {_STAGES}")
  parser.add_argument("--topology", default="v5e:16x16")
  parser.add_argument("--one", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    versions = harness.versions()
    print(json.dumps({"versions": versions, "row": measure(args.one, args.topology)}))
    return 0
  if not args.after:
    parser.error("--after=PYTHON of the other environment is missing")
  rows, versions = {}, {}
  for stage in args.stages.split(","):
    rows[stage] = {}
    for side in ("before", "after"):
      done = measure_with(getattr(args, side), stage, args.topology)
      rows[stage][side], versions[side] = done["row"], done["versions"]
      print(f"{stage} {side}: {done['row']}", flush=True)
  result = harness.about(
      "versions", f"python -m benchmarks.versions --before=PYTHON --after=PYTHON --stages={args.stages} "
      f"--topology={args.topology}") | {"versions": versions, "rows": rows}
  harness.save(_ROOT / f"benchmarks/results/versions_{args.topology.replace(':', '_')}.json", result)
  print(", ".join(f"{name} {versions['before'][name]} → {versions['after'][name]}"
                  for name in versions["before"] if versions["before"][name] != versions["after"][name]))
  print(table(rows))
  return int(any(worse(row["before"], row["after"]) for row in rows.values()))


if __name__ == "__main__":
  sys.exit(main())
