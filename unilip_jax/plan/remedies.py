"""Finds what makes a run fit whose plan does not.

Tried are weights gathered layer by layer, rematerialisation, more fsdp, micro-batches or a smaller batch,
each planned on top of those before it, then more chips with the config as it was, until one fits.
"""

from collections.abc import Callable, Iterator
import copy
from typing import Any

from absl import logging

from unilip_jax.configs import listing
from unilip_jax.plan import batches, compiling, topology
from unilip_jax.sharding import mesh as mesh_lib

_TRIES = 8
_SPLITS = (2, 4, 8, 16)  # of the batch
# Networks of a task whose activations the backward pass needs; of a task of somebody else all.
_NETWORKS = {"reconstruct": ("vit", "decoder"), "generate": ("llm", "dit"),
             "distill": ("llm", "dit"), "understand": ("vit", "llm")}


def find(
    config: Any, where: topology.Topology, plan: Callable[[Any, topology.Topology], dict[str, Any]]
) -> dict[str, Any]:
  """Tries changes of a run that does not fit.

  Args:
    config: with a batch and a mesh for `where`.
    where: the devices that it does not fit on.
    plan: of (config, devices), as estimate.plan.

  Returns:
    {"would_fit": {"topology", "flags", "needed"} of the first change that fits, or None; "tried": a row
    per change: the same and "fits", or "error"}.
  """
  tried: list[dict[str, Any]] = []
  for changed, devices in candidates(config, where):
    if len(tried) >= _TRIES:
      break
    row: dict[str, Any] = {"topology": devices.name, "flags": flags(config, changed)}
    logging.info("plan: does not fit; trying %s %s", row["topology"], row["flags"])
    try:
      result = plan(changed, devices)
    except (ValueError, compiling.CompileError) as error:
      tried.append(row | {"fits": False, "error": str(error).splitlines()[0]})
      continue
    row |= {"needed": result["memory_per_device"]["needed"],
            "available": result["memory_per_device"]["available"]}
    tried.append(row | {"fits": result["fits"]})
    if result["fits"]:
      return {"would_fit": row, "tried": tried}
  return {"would_fit": None, "tried": tried}


def candidates(config: Any, where: topology.Topology) -> Iterator[tuple[Any, topology.Topology]]:
  """Yields (config, devices) in the order of trying; those that change nothing are left out."""
  changed = copy.deepcopy(config).unlock()
  if changed.mesh.gather == "step":
    changed.mesh.gather = "layer"
    yield copy.deepcopy(changed), where
  for name in _NETWORKS.get(config.task, tuple(config.remat)):
    changed.remat[name] = "full"
  if changed.remat.to_dict() != config.remat.to_dict():
    yield copy.deepcopy(changed), where
  widest = mesh_lib.chosen_fsdp(-1, -1, where.size, where.inside)
  if changed.mesh.fsdp < widest:
    changed.mesh.data, changed.mesh.fsdp = -1, widest
    yield copy.deepcopy(changed), where
  for split in _SPLITS:
    size = config.batch_size // split
    if size < where.size:
      break
    if config.gan.weight:  # its averages are of the complete batch
      yield batches.fitted(changed, where.size, size), where
    else:
      changed.grad_accum_steps = config.grad_accum_steps * split
      yield batches.fitted(changed, where.size * changed.grad_accum_steps), where
  for larger in topology.larger(where):
    yield batches.chosen(config, larger)[0], larger


def flags(before: Any, after: Any) -> str:
  """Returns the flags that make one config of the other."""
  old = dict(listing.flatten(before))
  return listing.flags({name: v for name, v in listing.flatten(after) if v != old[name]})
