"""Tries batch sizes, mesh shapes and rematerialisation, and recommends one.

A try is a complete plan, minutes of compiling. So their number is bounded, and they start with the
config's own batch. Two kinds of tries are skipped: a larger batch where a smaller one does not fit, and
policies of rematerialisation other than the fastest on the first mesh where they could be compared. More
rematerialisation may be faster, not only smaller: recomputed values need not be written and read. Every try
is appended to a file; a rerun continues from it.
"""

from collections.abc import Iterator
import json
from typing import Any

from absl import logging
from etils import epath

from unilip_jax.common import atomic_io
from unilip_jax.plan import batches, compiling, estimate, topology
from unilip_jax.sharding import param_rules

FILE = "plan_sweep.jsonl"
_POLICIES = ("none", "dots", "full")
_NEAR_BEST = 0.97  # of the best rate; among these the batch nearest to the recipe's wins
_FIELDS = ("batch_size", "data", "fsdp", "policy")


def candidates(config: Any, where: topology.Topology) -> Iterator[dict[str, Any]]:
  """Yields settings in the order of trying: {batch_size, data, fsdp, policy}."""
  size = where.size
  recipe = batches.fitted(config, size).batch_size
  largest = min(size // where.slices, param_rules.MAX_FSDP)
  shapes = [n for n in (1, 4, 8, 16, 32, 64) if size % n == 0 and n <= largest]
  shapes = sorted(shapes, key=lambda n: (n == 1, n != min(shapes[-1], 16), n))
  for batch in (recipe, 2 * recipe, 4 * recipe):
    for fsdp in shapes:
      for policy in _POLICIES:
        yield {"batch_size": batch, "data": size // fsdp, "fsdp": fsdp, "policy": policy}


def settings(config: Any, where: topology.Topology, candidate: dict[str, Any]) -> Any:
  """Returns the config of a try. Sub-batches become multiples of the chips where they have to be."""
  tried = batches.fitted(config, where.size, candidate["batch_size"])
  tried.mesh.data, tried.mesh.fsdp = candidate["data"], candidate["fsdp"]
  for name in tried.remat:
    tried.remat[name] = candidate["policy"]
  return tried


def sweep(
    config: Any, where: topology.Topology, folder: epath.Path, *, tries: int, timeout: float
) -> dict[str, Any]:
  """Plans up to `tries` settings.

  Args:
    config: of a run; its batch, mesh and remat are where the search begins.
    where: the devices.
    folder: holds FILE.
    tries: at most; those that FILE holds from an earlier run count.
    timeout: seconds for the compiler, each.

  Returns:
    The plan of the recommended settings, with "sweep": a row per try, and "recommended": flags.

  Raises:
    ValueError: if nothing that was tried fits, with the least memory that was needed.
  """
  done = _read(folder / FILE, config, where)
  rows: list[dict[str, Any]] = []
  for candidate in candidates(config, where):
    if len(rows) >= tries:
      logging.info("plan: stopped after --sweep_tries=%d tries", tries)
      break
    if _is_pointless(candidate, rows):
      continue
    key = json.dumps(candidate, sort_keys=True)
    if key not in done:
      logging.info("plan: try %d: %s", len(rows) + 1, key)
      done[key] = _try(config, where, candidate, timeout)
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
  chosen = min((r for r in fitting if r["images_per_second"] >= _NEAR_BEST * best),
               key=lambda r: (abs(r["batch_size"] - config.batch_size), -r["images_per_second"]))
  chosen = {k: chosen[k] for k in _FIELDS}
  return done[json.dumps(chosen, sort_keys=True)]["plan"] | {
      "sweep": rows, "recommended": _flags(config, where, chosen)}


def _flags(config: Any, where: topology.Topology, chosen: dict[str, Any]) -> str:
  flags = [f"--config.batch_size={chosen['batch_size']}", f"--config.mesh.fsdp={chosen['fsdp']}"]
  flags += [f"--config.remat.{n}={chosen['policy']}" for n in config.remat]
  multiple = settings(config, where, chosen).data.part_multiple
  if multiple != config.data.part_multiple:
    flags.append(f"--config.data.part_multiple={multiple}")
  return " ".join(flags)


def _try(
    config: Any, where: topology.Topology, candidate: dict[str, Any], timeout: float
) -> dict[str, Any]:
  try:
    plan = estimate.plan(settings(config, where, candidate), where, timeout=timeout)
  except (ValueError, compiling.CompileError) as error:
    lines = str(error).strip().splitlines()  # the compiler's errors come with their stack trace
    message = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return {"row": {"fits": False, "error": message}, "plan": None}
  row = {"fits": plan["fits"], "needed": plan["memory_per_device"]["needed"], "remat": plan["remat"]}
  if plan["fits"]:
    row |= {k: plan["time"][k] for k in ("step_seconds", "images_per_second", "mfu", "chip_hours")}
  return {"row": row, "plan": plan}


def _is_pointless(candidate: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
  """Returns whether earlier tries show that this one does not fit, or will not be faster."""
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


# ---- the file of tries


def _identity(config: Any, where: topology.Topology) -> str:
  """Returns what the result of a try depends on besides its candidate."""
  fields = {k: v for k, v in config.to_dict().items() if k not in ("batch_size", "remat")}
  return json.dumps([where.name, fields], default=str, sort_keys=True)


def _read(path: epath.Path, config: Any, where: topology.Topology) -> dict[str, Any]:
  """Returns {key: result} of this config's tries; a damaged line is a try that is made again."""
  lines = path.read_text().splitlines() if path.exists() else []
  identity, results = _identity(config, where), {}
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      if row["of"] == identity:
        results[row["key"]] = row["result"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      logging.warning("%s, line %d is damaged (%s) and left out", path, number, error)
  return results


def _append(path: epath.Path, config: Any, where: topology.Topology, key: str, result: Any) -> None:
  before = path.read_text() if path.exists() else ""
  line = json.dumps({"of": _identity(config, where), "key": key, "result": result})
  atomic_io.write(path, f"{before}{line}\n".encode())
