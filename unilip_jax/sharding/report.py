"""What of a state lives where: the table printed at a run's start, and the refusal of large copies."""

from collections.abc import Container, Mapping
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from unilip_jax.common import tree
from unilip_jax.sharding import param_rules

_MB = 2**20


def rows(abstract: Mapping[str, Any], mesh: Mesh, min_size: int) -> list[dict[str, Any]]:
  """One row per array: path, shape, spec, bytes per device, and why it is whole everywhere.

  Args:
    abstract: nested dicts of arrays or ShapeDtypeStructs.
    mesh: its `fsdp` axis counts.
    min_size: see sharding_rules.place.

  Returns:
    Dicts with path, shape, spec (a tuple), bytes_per_device, why_replicated ("" for a split array) and
    note (why a row of the table was passed over).
  """
  fsdp, out = mesh.shape["fsdp"], []
  for path, leaf in tree.flatten(abstract).items():
    placement = param_rules.place(path, leaf.shape, fsdp, min_size)
    held = getattr(leaf, "sharding", None)
    if placement.spec and held is not None and held.is_fully_replicated:
      placement = param_rules.Placement((), "mesh.frozen_sharding is whole")
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    out.append({
        "path": path, "shape": tuple(leaf.shape), "spec": placement.spec,
        "bytes_per_device": size // (fsdp if placement.spec else 1),
        "why_replicated": "" if placement.spec else placement.why,
        "note": placement.why if placement.spec else ""})
  return out


def check(
    abstract: Mapping[str, Any], mesh: Mesh, min_size: int, max_replicated: int,
    whole: Container[str] = ()
) -> None:
  """Checks the tables against a task's parameters, and that no large array is whole everywhere.

  Args:
    abstract: all parameters of a task by module.
    mesh: the devices.
    min_size: see sharding_rules.place.
    max_replicated: bytes of the largest array that may be; 0 allows any. With fsdp = 1 all may.
    whole: paths of arrays that are meant to be.

  Raises:
    ValueError: naming the arrays and the sizes of fsdp that split them; see also sharding_rules.check.
  """
  param_rules.check(tree.flatten(abstract))
  if mesh.shape["fsdp"] == 1 or not max_replicated:
    return
  def large(fsdp: int) -> list[tuple[str, tuple[int, ...], int]]:
    found = []
    for path, leaf in tree.flatten(abstract).items():
      size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
      spec = param_rules.place(path, leaf.shape, fsdp, min_size).spec
      if path not in whole and size > max_replicated and not spec:
        found.append((path, leaf.shape, size))
    return found

  refused = large(mesh.shape["fsdp"])
  if not refused:
    return
  better = [n for n in range(2, param_rules.MAX_FSDP + 1) if mesh.size % n == 0 and not large(n)]
  remedy = f"set mesh.fsdp to one of {better}" if better else "set mesh.fsdp=1"
  named = "\n".join(f"  {path} {tuple(shape)}: {size / _MB:.0f} MB" for path, shape, size in refused[:8])
  more = f"\n  and {len(refused) - 8} more" if len(refused) > 8 else ""
  raise ValueError(
      f"mesh.fsdp={mesh.shape['fsdp']} leaves arrays over mesh.max_replicated={max_replicated} bytes "
      f"whole on every device:\n{named}{more}\n{remedy}, or raise mesh.max_replicated")


def text(state: Any, mesh: Mesh, min_size: int) -> str:
  """The report of a training state: its split parameters, large whole ones, and bytes per device.

  Args:
    state: state.TrainState of ShapeDtypeStructs with shardings (initial.abstract_state), or of arrays.
    mesh: the devices.
    min_size: see sharding_rules.place.
  """
  table = [row for part in (state.params, state.frozen, state.gan.get("params", {}))
           for row in rows(part, mesh, min_size)]
  lines = [f"mesh: data {mesh.shape['data']} × fsdp {mesh.shape['fsdp']}"]
  if mesh.shape["fsdp"] > 1:
    small = [r for r in table if r["why_replicated"] == "small"]
    lines += format_rows([r for r in table if r["why_replicated"] != "small"])
    lines.append(f"{len(small)} small arrays are whole on every device: "
                 f"{sum(r['bytes_per_device'] for r in small) / _MB:.1f} MB")
  parts = {"parameters": state.params, "frozen": state.frozen, "optimizer": state.opt_state,
           "average": state.ema, "discriminator": state.gan}
  sizes = {name: bytes_per_device(part) for name, part in parts.items()}
  lines.append("MB per device: " + ", ".join(
      f"{name} {size / _MB:.1f}" for name, size in sizes.items() if size)
      + f"; together {sum(sizes.values()) / _MB:.1f}")
  return "\n".join(lines)


def format_rows(table: list[dict[str, Any]]) -> list[str]:
  """Aligned lines: path, shape, spec, MB per device, reason; one for all equal blocks of a stage."""
  cells = list(dict.fromkeys(
      (group(r["path"]), "×".join(map(str, r["shape"])), spec_text(r["spec"], len(r["shape"])),
       f"{r['bytes_per_device'] / _MB:.2f}", r["why_replicated"] or r["note"]) for r in table))
  widths = [max((len(c[i]) for c in cells), default=0) for i in range(4)]
  return [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
          for a, b, c, d, e in cells]


def group(path: str) -> str:
  """The path with a star for the number of a block within its stage."""
  return re.sub(r"/blocks_\d+", "/blocks_*", path)


def spec_text(spec: param_rules.Spec, rank: int) -> str:
  """(None, "fsdp") of rank 3 -> "·,fsdp,·"; "whole" if nothing is split."""
  if not spec:
    return "whole"
  return ",".join(axis or "·" for axis in (*spec, *(None,) * (rank - len(spec))))


def bytes_per_device(part: Any) -> int:
  """Of a tree of arrays or ShapeDtypeStructs with shardings."""
  return sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
      for leaf in jax.tree.leaves(part))
