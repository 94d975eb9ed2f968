"""Chip hours, days, money and storage of the complete recipe at 1b, from the plans of plan_table.

  python -m benchmarks.recipe_table --prices=v6e=2.70,v5e=1.20 [--write=docs/scaling.md]

Prices are dollars per chip and hour and have to be given: they differ by region, date and contract. Nothing
is compiled here; a stage without a plan is an error.
"""

import argparse
import json
import pathlib
from typing import Any

from benchmarks import plan_table

STAGES = ("stage1", "stage2", "stage448", "gen1", "gen2", "gen3")
TOPOLOGIES = ("v6e:8x8", "v5e:16x16", "v5p:4x4x4", "h100:8")
_KEEP = 2  # checkpoints of a run (config.keep_checkpoints)
_CHECKPOINT = ("parameters", "optimizer", "ema", "discriminator")
_MARKS = ("<!-- recipe -->\n", "<!-- end of recipe -->")


def prices(text: str) -> dict[str, float]:
  """Parses "v6e=2.70,v5e=1.20".

  Raises:
    ValueError: for anything else.
  """
  try:
    return {kind: float(price) for kind, price in (part.split("=") for part in text.split(",") if part)}
  except ValueError as error:
    raise ValueError(f"--prices={text}: expected dollars per chip hour, e.g. v6e=2.70,v5e=1.20") from error


def costs(plans: dict[str, Any], topology: str, dollars: dict[str, float]) -> list[dict[str, Any]]:
  """Returns a row per stage: chip hours, days on that topology, dollars (None without a price), bytes.

  Bytes are those of two checkpoints and the frozen weights: per device times the devices that share a copy,
  at most, because small arrays are on all of them.

  Raises:
    ValueError: if a stage has no plan there.
  """
  result = []
  for stage in STAGES:
    row = {"stage": stage, "size": "1b", "topology": topology, "batch": "recipe"}
    # As `unilip plan`, which takes the faster time of gathering weights that fits.
    timed = [plan for r in (row, plan_table.once(row))
             if "time" in (plan := plans.get(plan_table.key_of(r), {}).get("plan", {}))]
    plan = min(timed, key=lambda p: (not p["fits"], p["time"]["step_seconds"]), default=None)
    if plan is None:
      raise ValueError(f"no plan of {stage}:1b on {topology}; run python -m benchmarks.plan_table "
                       f"--only={stage}:1b,{topology}")
    hours, split = plan["time"]["chip_hours"], plan["memory_per_device"]["split"]
    copies = plan["mesh"]["fsdp"]
    frozen = split["frozen"] * (1 if stage.startswith("gen") else copies)  # replicated there
    price = dollars.get(topology.partition(":")[0])
    result.append({
        "stage": stage, "batch": plan["batch_size"], "gather": plan.get("gather", "layer"),
        "fits": plan["fits"], "chip_hours": hours,
        "days": hours / plan["chips"] / 24, "dollars": None if price is None else hours * price,
        "bytes": _KEEP * copies * sum(split[k] for k in _CHECKPOINT) + frozen})
  return result


def table(plans: dict[str, Any], dollars: dict[str, float]) -> str:
  """Returns a Markdown table of every stage and their sum, on every topology."""
  lines = ["| devices | stage | batch | gather | chip hours | days | dollars | storage of the run, GB |",
           "|---|---|---|---|---|---|---|---|"]
  for topology in TOPOLOGIES:
    rows = costs(plans, topology, dollars)
    total = {k: sum(r[k] for r in rows) for k in ("chip_hours", "days", "bytes")}
    total |= {"stage": "**all**", "batch": "", "gather": "", "fits": True,
              "dollars": sum(r["dollars"] for r in rows) if rows[0]["dollars"] is not None else None}
    for r in (*rows, total):
      money = "no price given" if r["dollars"] is None else f"{r['dollars']:.0f}"
      name = r["stage"] + ("" if r["fits"] else " (does not fit)")
      lines.append(f"| {topology} | {name} | {r['batch']} | {r['gather']} | {r['chip_hours']:.0f} | "
                   f"{r['days']:.2f} | {money} | {r['bytes'] / 1e9:.0f} |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--prices", default="", help="dollars per chip hour, e.g. v6e=2.70,v5e=1.20")
  parser.add_argument("--write", help="Markdown file that holds the table between marks")
  args = parser.parse_args()
  plans = json.loads(plan_table.RESULTS.read_text())["plans"]
  text = table(plans, prices(args.prices))
  print(text)
  if args.write:
    path = pathlib.Path(args.write)
    head, rest = path.read_text().split(_MARKS[0], 1)
    path.write_text(head + _MARKS[0] + text + "\n" + _MARKS[1] + rest.split(_MARKS[1], 1)[1])


if __name__ == "__main__":
  main()
