"""Tries batch sizes, mesh shapes and rematerialisation, and recommends one.

A try is a whole plan, minutes of compiling, so their number is bounded and order matters: the config's
own batch first. What will not be better is passed over: a larger batch where a smaller one does not fit,
and rematerialisation other than what was fastest on the first mesh that it could be compared on. More of it
may be faster, not only smaller: what is made again need not be written and read. Every try is written at
once; a rerun goes on.
"""

from collections.abc import Iterator
import json
from typing import Any

from absl import logging
from etils import epath

from unilip_jax.plan import batches, compiling, topology

FILE = "plan_sweep.jsonl"
_POLICIES = ("none", "dots", "full")
_NEAR = 0.97  # of the best rate: then the batch nearest to the recipe's wins


def candidates(config: Any, where: topology.Topology) -> Iterator[dict[str, Any]]:
  """Settings in the order of trying: {batch_size, data, fsdp, policy}."""
  from unilip_jax.sharding import param_rules

  size = where.size
  recipe = batches.fitted(config, size).batch_size
  sizes = [recipe, 2 * recipe, 4 * recipe]
  shapes = [n for n in (1, 4, 8, 16, 32, 64) if size % n == 0 and n <= min(
      size // where.slices, param_rules.MAX_FSDP)]
  shapes = sorted(shapes, key=lambda n: (n == 1, n != min(shapes[-1], 16), n))
  for batch in sizes:
    for fsdp in shapes:
      for policy in _POLICIES:
        yield {"batch_size": batch, "data": size // fsdp, "fsdp": fsdp, "policy": policy}


def settings(config: Any, where: topology.Topology, candidate: dict[str, Any]) -> Any:
  """The config of a try. Sub-batches become multiples of the chips where they have to be."""
  tried = batches.fitted(config, where.size, candidate["batch_size"])
  tried.mesh.data, tried.mesh.fsdp = candidate["data"], candidate["fsdp"]
  for name in tried.remat:
    tried.remat[name] = candidate["policy"]
  return tried


def sweep(
    config: Any, where: topology.Topology, folder: epath.Path, *, tries: int, timeout: float
) -> dict[str, Any]:
  """Runs the tries.

  Args:
    config: of a run; its batch, mesh and remat are where the search begins.
    where: the devices.
    folder: keeps FILE.
    tries: at most; those of an earlier run that the file holds count.
    timeout: seconds for the compiler, each.

  Returns:
    The plan of the recommended settings, with "sweep": a row per try, and "recommended".

  Raises:
    ValueError: if nothing that was tried fits, with the least that was needed.
  """
  from unilip_jax.plan import run

  done = _read(folder / FILE, config, where)
  rows: list[dict[str, Any]] = []
  for candidate in candidates(config, where):
    if len(rows) >= tries:
      logging.info("plan: stopped after --sweep_tries=%d tries", tries)
      break
    if _pointless(candidate, rows):
      continue
    key = json.dumps(candidate, sort_keys=True)
    if key not in done:
      logging.info("plan: try %d: %s", len(rows) + 1, key)
      done[key] = _try(run, config, where, candidate, timeout)
      _append(folder / FILE, config, where, key, done[key])
    rows.append(candidate | done[key]["row"])
    logging.info("plan: %s", "fits" if rows[-1]["fits"] else "does not fit or cannot run")
  fitting = [r for r in rows if r["fits"]]
  if not fitting:
    needed = [r["needed"] for r in rows if r.get("needed")]
    least = f"; the least that one needed is {min(needed) / 2**30:.1f} GiB" if needed else (
        f"; the first error: {rows[0]['error']}" if rows else "")
    raise ValueError(f"plan: none of {len(rows)} settings fits {where.name}, "
                     f"{where.chip.hbm / 2**30:.1f} GiB per chip{least}")
  best = max(r["images_per_second"] for r in fitting)
  chosen = min((r for r in fitting if r["images_per_second"] >= _NEAR * best),
               key=lambda r: (abs(r["batch_size"] - config.batch_size), -r["images_per_second"]))
  key = json.dumps({k: chosen[k] for k in ("batch_size", "data", "fsdp", "policy")}, sort_keys=True)
  flags = [f"--config.batch_size={chosen['batch_size']}", f"--config.mesh.fsdp={chosen['fsdp']}"]
  flags += [f"--config.remat.{n}={chosen['policy']}" for n in config.remat]
  tried = settings(config, where, chosen)
  if tried.data.part_multiple != config.data.part_multiple:
    flags.append(f"--config.data.part_multiple={tried.data.part_multiple}")
  return done[key]["plan"] | {"sweep": rows, "recommended": " ".join(flags)}


def _try(run, config, where, candidate, timeout) -> dict[str, Any]:
  try:
    plan = run.plan(settings(config, where, candidate), where, timeout=timeout)
  except (ValueError, compiling.CompileError) as error:
    lines = str(error).strip().splitlines()  # the compiler's errors come with their stack
    said = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return {"row": {"fits": False, "error": said}, "plan": None}
  row = {"fits": plan["fits"], "needed": plan["memory_per_device"]["needed"], "remat": plan["remat"]}
  if plan["fits"]:
    row |= {k: plan["time"][k] for k in ("step_seconds", "images_per_second", "mfu", "chip_hours")}
  return {"row": row, "plan": plan}


def _pointless(candidate: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
  """Whether earlier tries show that this one does not fit, or will not be faster."""
  mesh = [r for r in rows if r["fsdp"] == candidate["fsdp"]]
  if any(not r["fits"] and r.get("needed") and r["policy"] == candidate["policy"]
         and r["batch_size"] < candidate["batch_size"] for r in mesh):
    return True
  here = [r for r in mesh if r["batch_size"] == candidate["batch_size"]]
  elsewhere = [r for r in rows if r["fits"] and r not in here]
  if not elsewhere:
    return False
  amount = _POLICIES.index(candidate["policy"])
  fastest = _POLICIES.index(max(elsewhere, key=lambda r: r["images_per_second"])["policy"])
  return amount < fastest or (amount > fastest and any(r["fits"] for r in here))


def _identity(config: Any, where: topology.Topology) -> str:
  """What a kept try depends on besides its candidate."""
  fields = config.to_dict()
  for name in ("batch_size", "remat"):
    fields.pop(name)
  return json.dumps([where.name, fields], default=str, sort_keys=True)


def _read(path: epath.Path, config: Any, where: topology.Topology) -> dict[str, Any]:
  if not path.exists():
    return {}
  wanted, found = _identity(config, where), {}
  for line in path.read_text().splitlines():
    row = json.loads(line)
    if row["of"] == wanted:
      found[row["key"]] = row["result"]
  return found


def _append(path: epath.Path, config: Any, where: topology.Topology, key: str, result: Any) -> None:
  before = path.read_text() if path.exists() else ""
  line = json.dumps({"of": _identity(config, where), "key": key, "result": result})
  path.write_text(before + line + "\n")
