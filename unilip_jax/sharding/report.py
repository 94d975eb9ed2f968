"""Which device holds what: the table printed when a run starts, and the refusal of large copies."""

from collections.abc import Container, Mapping
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from unilip_jax.common import errors, tree
from unilip_jax.sharding import param_rules

_MB = 2**20


def rows(abstract: Mapping[str, Any], mesh: Mesh, min_size: int) -> list[dict[str, Any]]:
  """Lists the arrays: path, shape, spec, bytes per device, and why an array is replicated.

  Args:
    abstract: nested dicts of arrays or ShapeDtypeStructs.
    mesh: its `fsdp` axis splits arrays.
    min_size: see param_rules.place.

  Returns:
    Dicts with path, shape, spec (a tuple), bytes_per_device, why_replicated ("" for a split array) and
    note (why a row of the table was skipped).
  """
  fsdp, out = mesh.shape["fsdp"], []
  for path, leaf in tree.flatten(abstract).items():
    placement = param_rules.place(path, leaf.shape, fsdp, min_size)
    sharding = getattr(leaf, "sharding", None)  # NumPy arrays and abstract ones have none
    if placement.spec and sharding is not None and sharding.is_fully_replicated:
      placement = param_rules.Placement((), "mesh.frozen_sharding is replicated")
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    out.append({
        "path": path, "shape": tuple(leaf.shape), "spec": placement.spec,
        "bytes_per_device": size // (fsdp if placement.spec else 1),
        "why_replicated": "" if placement.spec else placement.why,
        "note": placement.why if placement.spec else ""})
  return out


def check(
    abstract: Mapping[str, Any], mesh: Mesh, min_size: int, max_replicated: int,
    allowed: Container[str] = ()
) -> None:
  """Checks the tables against a task's parameters, and that no large array is replicated.

  Args:
    abstract: all parameters of a task by module.
    mesh: the devices.
    min_size: see param_rules.place.
    max_replicated: bytes of the largest array that may be replicated; 0 allows any, as does fsdp = 1.
    allowed: paths of arrays that may be replicated whatever their size.

  Raises:
    ValueError: naming the arrays and the sizes of fsdp that split them; see also param_rules.check.
  """
  param_rules.check(tree.flatten(abstract))
  if mesh.shape["fsdp"] == 1 or not max_replicated:
    return

  def large(fsdp: int) -> list[tuple[str, tuple[int, ...], int]]:
    found = []
    for path, leaf in tree.flatten(abstract).items():
      size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
      spec = param_rules.place(path, leaf.shape, fsdp, min_size).spec
      if path not in allowed and size > max_replicated and not spec:
        found.append((path, leaf.shape, size))
    return found

  refused = large(mesh.shape["fsdp"])
  if not refused:
    return
  better = [n for n in range(2, param_rules.MAX_FSDP + 1) if mesh.size % n == 0 and not large(n)]
  remedy = f"set mesh.fsdp to one of {better}" if better else "set mesh.fsdp=1"
  named = errors.listed(
      (f"  {path} {tuple(shape)}: {size / _MB:.0f} MB" for path, shape, size in refused), limit=8)
  raise ValueError(
      f"mesh.fsdp={mesh.shape['fsdp']} replicates arrays over mesh.max_replicated={max_replicated} bytes "
      f"on every device:\n{named}\n{remedy}, or raise mesh.max_replicated")


def text(state: Any, mesh: Mesh, min_size: int) -> str:
  """Formats the report of a training state: its split parameters, large replicated ones, bytes per device.

  Args:
    state: optim.state.TrainState of arrays, or of ShapeDtypeStructs with shardings.
    mesh: the devices.
    min_size: see param_rules.place.
  """
  table = [row for part in (state.params, state.frozen, state.gan.get("params", {}))
           for row in rows(part, mesh, min_size)]
  lines = [f"mesh: data {mesh.shape['data']} × fsdp {mesh.shape['fsdp']}"]
  if mesh.shape["fsdp"] > 1:
    small = [r for r in table if r["why_replicated"] == "small"]
    lines += format_rows([r for r in table if r["why_replicated"] != "small"])
    lines.append(f"{len(small)} small arrays are replicated: "
                 f"{sum(r['bytes_per_device'] for r in small) / _MB:.1f} MB")
  parts = {"parameters": state.params, "frozen": state.frozen, "optimizer": state.opt_state,
           "EMA": state.ema, "old policy": state.old, "discriminator": state.gan}
  sizes = {name: bytes_per_device(part) for name, part in parts.items()}
  lines.append("MB per device: " + ", ".join(
      f"{name} {size / _MB:.1f}" for name, size in sizes.items() if size)
      + f"; together {sum(sizes.values()) / _MB:.1f}")
  return "\n".join(lines)


def format_rows(table: list[dict[str, Any]]) -> list[str]:
  """Formats aligned lines: path, shape, spec, MB per device, reason; one for equal blocks of a stage."""
  cells = list(dict.fromkeys(
      (group(r["path"]), "×".join(map(str, r["shape"])), spec_text(r["spec"], len(r["shape"])),
       f"{r['bytes_per_device'] / _MB:.2f}", r["why_replicated"] or r["note"]) for r in table))
  widths = [max((len(c[i]) for c in cells), default=0) for i in range(4)]
  return [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
          for a, b, c, d, e in cells]


def group(path: str) -> str:
  """Replaces the number of a block within its stage by a star."""
  return re.sub(r"/blocks_\d+", "/blocks_*", path)


def spec_text(spec: param_rules.Spec, rank: int) -> str:
  """Formats a spec: (None, "fsdp") of rank 3 -> "·,fsdp,·"; "replicated" if nothing is split."""
  if not spec:
    return "replicated"
  return ",".join(axis or "·" for axis in (*spec, *(None,) * (rank - len(spec))))


def bytes_per_device(part: Any) -> int:
  """Sums the bytes of a tree of arrays, or of ShapeDtypeStructs with shardings, on one device."""
  return sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
      for leaf in jax.tree.leaves(part))
