"""Prints the flags of a stage's batch on a pod, where plans say that it pays (pod_batches.json).

  python3 launch/pod_batches.py configs/stage448.py:1b v5e:16x16   # nothing where the config's batch stays
  python -m launch.pod_batches           # writes pod_batches.json and the table of docs/training.md

Printing needs Python's own library alone.
"""

import json
import pathlib
import sys

FILE = pathlib.Path(__file__).with_name("pod_batches.json")
DOCUMENT = FILE.parents[1] / "docs/training.md"
_MARK, _END = "<!-- pod batches -->\n", "<!-- end of pod batches -->"
_GAIN = 1.2  # images/s of the larger batch over those of the recipe's, from which it pays


def flags(config: str, topology: str) -> list[str]:
  """Returns flags of unilip_jax.main.

  Args:
    config: configs/STAGE.py:SIZE.
    topology: e.g. v6e:8x8; "" where a script does not know it.

  Raises:
    ValueError: for an unknown topology where the stage's batch depends on it.
  """
  path, _, size = config.partition(":")
  pods = json.loads(FILE.read_text()).get(f"{pathlib.PurePath(path).stem}:{size}", {})
  if pods and not topology:
    raise ValueError(f"--topology=... is needed: the batch of {config} depends on it (--batch=recipe keeps "
                     "the config's)")
  return [f"--config.{name}={value}" for name, value in pods.get(topology, {}).get("fields", {}).items()]


def from_plans() -> dict:
  """Returns {stage: {topology: {"images_per_second": [recipe, here], "fields": {...}}}}."""
  from benchmarks import plan_table
  from unilip_jax.configs import larger_batch

  plans = {key: entry["plan"] for key, entry in json.loads(plan_table.RESULTS.read_text())["plans"].items()}
  pods: dict = {}
  for row in plan_table.rows():
    if row["batch"] != "per device" or row["stage"] == "gen2" or "gather" in row:
      continue
    recipe = row | {"batch": "recipe"}
    keys = [plan_table.key_of(r) for r in (recipe, plan_table.once(recipe), row)]
    *official, larger = [plans.get(key, {}) for key in keys]
    if not larger.get("fits") or "time" not in larger:
      continue
    speeds = [plan["time"]["images_per_second"] for plan in (*official, larger) if plan.get("fits")]
    if speeds[-1] < _GAIN * max(speeds[:-1], default=0):
      continue
    config = plan_table.config_of(recipe)[0]
    official_batch = plan_table.stage_config(row["stage"], row["size"])
    fields = larger_batch.fields(official_batch, larger["batch_size"]) | {"mesh.fsdp": config.mesh.fsdp}
    pods.setdefault(f"{row['stage']}:{row['size']}", {})[row["topology"]] = {
        "images_per_second": [round(max(speeds[:-1], default=0)), round(speeds[-1])], "fields": fields}
  return pods


def with_table(text: str, pods: dict) -> str:
  """Returns a Markdown document with the table of `pods` between its marks."""
  head, rest = text.split(_MARK, 1)
  lines = ["| stage | topology | images an update | `optimizer.lr` | `total_steps` | "
           "images/s, estimated: recipe, here |", "|---" * 6 + "|"]
  for stage, topologies in pods.items():
    for topology, pod in topologies.items():
      fields, speeds = pod["fields"], ", ".join(map(str, pod["images_per_second"]))
      lines.append(f"| {stage} | {topology} | {fields['batch_size']} | {fields['optimizer.lr']:g} | "
                   f"{fields['total_steps']} | {speeds} |")
  return head + _MARK + "\n".join(lines) + "\n" + _END + rest.split(_END, 1)[1]


def main(argv: list[str]) -> None:
  if argv:
    for flag in flags(*argv):
      print(flag)
  else:
    pods = from_plans()
    FILE.write_text(json.dumps(pods, indent=1) + "\n")
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(), pods))


if __name__ == "__main__":
  try:
    main(sys.argv[1:])
  except ValueError as error:
    sys.exit(str(error))
