"""Plans the stages on TPU topologies, one after another, and writes tables.

  python -m benchmarks.plan_table [--only=stage2:1b,v5e] [--write=docs/scaling.md]

Compiles every step for the topology on this machine (pip install -r requirements-plan.txt; no TPU is
used, times are estimates) and writes each result at once to benchmarks/results/plan_tpu.json: a rerun
continues where it stopped, --again plans all of them again. GPUs are counted from shapes.
"""

import argparse
import importlib
import json
import pathlib
import time
from typing import Any

import jax

from benchmarks import harness
from unilip_jax import tasks
from unilip_jax.plan import batches, collectives, command, estimate, memory, topology
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import initial_state

_ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "benchmarks/results/plan_tpu.json"
_STAGES = ("stage2", "stage448", "gen2")
_SIZES = ("1b", "3b")
_TPUS = ("v5e:4x4", "v5e:16x16", "v6e:8x8", "v5p:4x4x4")
_GPUS = ("h100:8", "h100:1")
# On one GPU: (batch, micro-batches). Stages with a discriminator cannot accumulate gradients, so that their
# batch is one that fits; gen2 keeps the recipe's.
_ONE_GPU = {"stage2": (32, 1), "stage448": (8, 1), "gen2": (512, 16)}
_RECIPE = ("v6e:8x8", "v5e:16x16", "v5p:4x4x4", "h100:8")  # all stages are planned there
_FSDP = 16  # devices that share one copy of the state, on TPUs
# Images a device where the batch grows with the devices: those of the recipe's batch on 16 of them.
_PER_DEVICE = {"stage1": 8, "stage2": 8, "stage448": 8, "gen2": 32}


def _row(stage: str, size: str, devices: str, batch: str = "recipe") -> dict[str, Any]:
  return {"stage": stage, "size": size, "topology": devices, "batch": batch}


def rows() -> list[dict[str, Any]]:
  """Lists all plans, in order of interest: weights gathered by layer, then once a step."""
  # One device gathers nothing.
  return _by_layer() + [once(row) for row in _by_layer() if row["topology"] != "h100:1"]


def once(row: dict[str, Any]) -> dict[str, Any]:
  """Returns the row with mesh.gather="step"; rows without `gather` are "layer"."""
  return row | {"gather": "step"}


def _by_layer() -> list[dict[str, Any]]:
  recipe = [_row(stage, size, devices) for size in _SIZES for devices in _TPUS for stage in _STAGES]
  grown = [_row(stage, "1b", devices, "per device") for devices in ("v5e:16x16", "v6e:8x8", "v5p:4x4x4")
           for stage in ("stage1", *_STAGES) if stage != "gen2" or devices == "v5e:16x16"]
  gpus = [_row(stage, size, devices) for size in _SIZES for stage in _STAGES for devices in _GPUS]
  others = [_row(stage, "1b", devices) for devices in _RECIPE for stage in ("stage1", "gen1", "gen3")]
  return recipe + grown + gpus + others


def key_of(row: dict[str, Any]) -> str:
  return " ".join(f"{k}={v}" for k, v in row.items())


def stage_config(stage: str, size: str):
  """Returns the config of a stage as it is."""
  return importlib.import_module(f"unilip_jax.configs.{stage}").get_config(size)


def config_of(row: dict[str, Any]):
  """Returns (config, topology) of a row: the recipe's batch, or the nearest that divides."""
  where = topology.parse(row["topology"])
  config = stage_config(row["stage"], row["size"])
  batch_size = _PER_DEVICE[row["stage"]] * where.size if row["batch"] == "per device" else 0
  if where.size == 1:
    config.batch_size, config.grad_accum_steps = _ONE_GPU[row["stage"]]
  config = batches.fitted(config, where.size, batch_size)
  config.mesh.fsdp = min(where.size, _FSDP)
  config.mesh.gather = row.get("gather", "layer")
  return config, where


def plan_all(only: list[str], again: bool, timeout: float) -> dict[str, Any]:
  """Plans the missing rows; every result is written at once."""
  results = json.loads(RESULTS.read_text())["plans"] if RESULTS.exists() else {}
  for row in rows():
    key = key_of(row)
    if (key in results and not again) or not all(part in key.replace(" size=", ":") for part in only):
      continue
    print(f"--- {key}", flush=True)
    begin = time.monotonic()
    config, where = config_of(row)
    try:
      plan = estimate.plan(config, where, timeout=timeout)
      print(command.text(plan), flush=True)
    except (ValueError, RuntimeError) as error:
      plan = {"error": str(error)}
      print(plan["error"][:2000], flush=True)
    results[key] = {"row": row, "plan": plan, "seconds": time.monotonic() - begin,
                    "jax": jax.__version__}
    harness.save(RESULTS, harness.about("plan_table") | {"plans": results})
  return results


_HEAD = ("| stage | devices | mesh | batch | fits | memory | state | activations | temporaries | sent | "
         "compute | links | step | MFU | images/s | chip hours |\n" + "|---" * 16 + "|")


def table(results: dict[str, Any], chosen) -> str:
  """Returns a Markdown table of the rows that `chosen` accepts, with weights gathered by layer."""
  lines = [_HEAD]
  for row in _by_layer():
    entry = results.get(key_of(row))
    if entry and chosen(row):
      lines.append(_line(row, entry["plan"]))
  return "\n".join(lines)


def _line(row: dict[str, Any], plan: dict[str, Any]) -> str:
  name = f"{row['stage']}:{row['size']}"
  if "error" in plan:
    return f"| {name} | {row['topology']} | {plan['error'][:120]} |" + " |" * 13
  memory, split = plan["memory_per_device"], plan["memory_per_device"]["split"]
  gib = lambda n: f"{n / 2**30:.2f}"
  state = sum(split.get(k, 0) for k in ("parameters", "frozen", "optimizer", "ema", "discriminator"))
  cells = [name, row["topology"], f"{plan['mesh']['data']} × {plan['mesh']['fsdp']}",
           str(plan["batch_size"]), "yes" if plan["fits"] else "**no**",
           f"{gib(memory['needed'])} of {gib(memory['available'])}", gib(state),
           gib(split["activations"]) if "activations" in split else "",
           gib(split.get("temporaries", split.get("activations and temporaries", 0)))]
  cells.append(gib(plan["collectives"]["sent_bytes_per_device"]))
  found = plan.get("time")
  if not found:
    return "| " + " | ".join([*cells, *[""] * 6]) + " |"
  computing = next(iter(found["computation_seconds"].values()))
  cells += [f"{computing * 1e3:.0f}", f"{found['communication_seconds'] * 1e3:.0f}",
            f"{found['step_seconds'] * 1e3:.0f}", f"{found['mfu']:.0%}",
            f"{found['images_per_second']:.0f}", f"{found['chip_hours']:.0f}"]
  return "| " + " | ".join(cells) + " |"


_GATHER_HEAD = ("| stage | devices | batch | memory | sent | compute | links | step | chip hours |\n"
                + "|---" * 9 + "|")


def gathers(results: dict[str, Any]) -> str:
  """Returns a Markdown table of pairs: weights gathered by layer, once a step; of rows with both plans."""
  lines = [_GATHER_HEAD]
  for row in _by_layer():
    plans = [results[key_of(r)]["plan"] for r in (row, once(row)) if key_of(r) in results]
    if len(plans) == 2 and not any("error" in plan for plan in plans):
      lines.append(_gather_line(row, plans))
  return "\n".join(lines)


def _gather_line(row: dict[str, Any], plans: list[dict[str, Any]]) -> str:
  memory = [f"{p['memory_per_device']['needed'] / 2**30:.2f}" + ("" if p["fits"] else " (no)")
            for p in plans]
  timed = lambda text: [text(p, p["time"]) if "time" in p else "" for p in plans]
  pairs = [
      memory, timed(lambda p, _: f"{p['collectives']['sent_bytes_per_device'] / 2**30:.2f}"),
      timed(lambda _, t: f"{next(iter(t['computation_seconds'].values())) * 1e3:.0f}"),
      timed(lambda _, t: f"{t['communication_seconds'] * 1e3:.0f}"),
      timed(lambda _, t: f"{t['step_seconds'] * 1e3:.0f}"),
      timed(lambda _, t: f"{t['chip_hours']:.0f}")]
  cells = [f"{row['stage']}:{row['size']}", row["topology"], str(plans[0]["batch_size"]),
           *(", ".join(pair) for pair in pairs)]
  return "| " + " | ".join(cells) + " |"


_CHIPS = (4, 16, 64, 256, 1024)


def analytic() -> str:
  """Returns a Markdown table of the state and of the collectives that meshes imply, 4 to 1024 chips.

  Counted from shapes and shardings; nothing is compiled.
  """
  axes = (jax.sharding.AxisType.Auto,) * 2
  lines = ["| stage | figure per chip, GiB | " + " | ".join(f"{n} chips" for n in _CHIPS) + " |",
           "|---" * (2 + len(_CHIPS)) + "|"]
  for size in _SIZES:
    for stage in _STAGES:
      config = estimate.without_files(stage_config(stage, size))
      task, state, sent = tasks.make(config), [], []
      for chips in _CHIPS:
        fsdp = min(chips, _FSDP)
        mesh = jax.sharding.AbstractMesh((chips // fsdp, fsdp), mesh_lib.DATA_AXES, axis_types=axes)
        abstract = initial_state.abstract_state(task, config, mesh)
        state.append(sum(memory.state_bytes(abstract).values()) / 2**30)
        sent.append(sum(c.sent * c.times for c in collectives.implied(abstract, mesh, config)) / 2**30)
      for name, values in (("state", state), ("sent", sent)):
        lines.append(f"| {stage}:{size} | {name} | " + " | ".join(f"{v:.2f}" for v in values) + " |")
  return "\n".join(lines)


_TABLES = {
    "tpu": lambda r: r["batch"] == "recipe" and r["topology"] in _TPUS,
    "growth": lambda r: r["size"] == "1b" and (r["batch"] == "per device" or (
        r["topology"] in ("v5e:4x4", "v5e:16x16"))),
    "gpu": lambda r: r["topology"] in _GPUS,
}


def write(path: pathlib.Path, results: dict[str, Any]) -> None:
  """Writes the tables between their marks in a Markdown file.

  Raises:
    ValueError: if a mark is missing.
  """
  text = path.read_text()
  tables = {name: table(results, chosen) for name, chosen in _TABLES.items()}
  tables |= {"gather": gathers(results), "analytic": analytic()}
  for name, lines in tables.items():
    begin, end = f"<!-- plan {name} -->\n", f"<!-- end of plan {name} -->"
    if begin not in text or end not in text:
      raise ValueError(f"{path}: no marks {begin.strip()} and {end}")
    head, rest = text.split(begin, 1)
    text = head + begin + lines + "\n" + end + rest.split(end, 1)[1]
  path.write_text(text)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="parts of keys, comma-separated, e.g. stage2:1b,v5e")
  parser.add_argument("--again", action="store_true", help="plan again what has a result")
  parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one compilation")
  parser.add_argument("--analytic", action="store_true", help="print the table that needs no compiler only")
  parser.add_argument("--write", help="Markdown file that holds the tables between marks")
  args = parser.parse_args()
  if args.analytic:
    print(analytic())
    return
  results = plan_all([p for p in args.only.split(",") if p], args.again, args.timeout)
  if args.write:
    write(pathlib.Path(args.write), results)
  for name, chosen in _TABLES.items():
    print(f"\n{name}\n{table(results, chosen)}")
  print(f"\ngather\n{gathers(results)}")


if __name__ == "__main__":
  main()
