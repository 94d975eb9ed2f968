"""Turns a plan (unilip_jax.main --mode=plan) into a line `topology=...` and training flags.

  python3 launch/plan_flags.py plan.json
"""

import json
import sys


def lines(plan: dict) -> list[str]:
  """Returns one argument per line, the plan's topology first.

  Raises:
    ValueError: if the run does not fit there.
  """
  if not plan["fits"]:
    raise ValueError(f"stage {plan['stage']} does not fit on {plan['topology']}")
  flags = {f"mesh.{axis}": plan["mesh"][axis] for axis in ("data", "fsdp")}
  flags |= {"batch_size": plan["batch_size"], "grad_accum_steps": plan["grad_accum_steps"]}
  if "part_multiple" in plan:  # not in plans from before
    flags["data.part_multiple"] = plan["part_multiple"]
  if "gather" in plan:
    flags["mesh.gather"] = plan["gather"]
  flags |= {f"remat.{part}": policy for part, policy in plan["remat"].items()}
  return [f"topology={plan['topology']}", *(f"--config.{name}={value}" for name, value in flags.items())]


if __name__ == "__main__":
  try:
    with open(sys.argv[1]) as f:
      print("\n".join(lines(json.load(f))))
  except KeyError as error:
    sys.exit(f"{sys.argv[1]}: no field {error}")
  except (OSError, ValueError, TypeError, AttributeError) as error:
    sys.exit(f"{sys.argv[1]}: no plan: {error}")
