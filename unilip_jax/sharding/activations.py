"""Sharding constraints on activations, by name.

Without these constraints the partitioner may follow the sharding of a parameter and gather the batch, as it
does after the embedding table.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import numpy as np

from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import param_rules

ACTIVATIONS = {
    "batch": P(mesh_lib.DATA_AXES),  # [B, ...]
    "micro_batches": P(None, mesh_lib.DATA_AXES),  # [A, B/A, ...] of gradient accumulation
    # [B, L, D] right after the embedding table: each device has its columns for the tokens of its row of
    # the mesh. The table's gradient then needs no copy of the full table (74 MB of temporaries instead of
    # 1037 MB for a batch of 512 × 512 at 1b on v5e:16x16).
    "embedded": P("data", None, "fsdp"),
}


def under(mesh: Mesh, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a function so that `constrain` applies to `mesh` while it is traced; jit the result."""
  @functools.wraps(fn)
  def wrapped(*args, **kwargs):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(*args, **kwargs)

  return wrapped


def _current_mesh() -> Any:
  """Returns the abstract mesh of `under`; None outside, or for one device."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != mesh_lib.DATA_AXES or mesh.size == 1:
    return None
  return mesh


def join(parts: Sequence[jax.Array]) -> jax.Array:
  """Joins sub-batches into one batch without moving an example to another device.

  On every device the rows of the first part come first. The order of all rows therefore depends on the
  mesh; `part` inverts it.

  Args:
    parts: [B_i, ...] each, split over the devices of the current mesh.

  Returns:
    [Σ B_i, ...]. Where a part does not divide over the devices, the parts one after another.
  """
  if len(parts) == 1:
    return parts[0]
  count = _devices_between([p.shape[0] for p in parts])
  local = [constrain(p, "batch").reshape(count, -1, *p.shape[1:]) for p in parts]
  joined = constrain(jnp.concatenate(local, axis=1), "batch")
  return constrain(joined.reshape(-1, *joined.shape[2:]), "batch")


def part(x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
  """Inverts `join`.

  Args:
    x: [B, ...].
    sizes: rows of the parts, or numbers in the same proportion.

  Returns:
    Arrays of B · sizes[i] / Σ sizes rows.
  """
  if len(sizes) == 1:
    return [x]
  rows = [x.shape[0] * size // sum(sizes) for size in sizes]
  count = _devices_between(rows)
  local = constrain(x, "batch").reshape(count, -1, *x.shape[1:])
  ends = np.cumsum(rows) // count
  cut = jnp.split(constrain(local, "batch"), ends[:-1], axis=1)
  return [constrain(p.reshape(-1, *x.shape[1:]), "batch") for p in cut]


def _devices_between(rows: Sequence[int]) -> int:
  """Returns how many devices parts of these rows are split over; 1 where one part does not divide."""
  mesh = _current_mesh()
  return 1 if mesh is None or any(n % mesh.size for n in rows) else mesh.size


def constrain(x: jax.Array, name: str) -> jax.Array:
  """Applies a sharding constraint to an activation; returns x unchanged outside `under`.

  Args:
    x: at least of the rank of the spec; further dimensions are not split.
    name: key of ACTIVATIONS. Where a dimension does not divide over its axes, there is no constraint.

  Raises:
    ValueError: for another name.
  """
  if name not in ACTIVATIONS:
    raise ValueError(f"unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)}")
  spec, mesh = ACTIVATIONS[name], _current_mesh()
  if mesh is None:
    return x
  sizes = [math.prod(mesh.shape[a] for a in (axes if isinstance(axes, tuple) else (axes,)))
           if axes else 1 for axes in spec]
  if any(n % size for n, size in zip(x.shape, sizes)):
    return x
  return jax.lax.with_sharding_constraint(x, spec)


def constrain_params(params: Any, min_size: int) -> Any:
  """Constrains a tree with the parameters' paths, e.g. gradients, to their sharding; see `constrain`."""
  mesh = _current_mesh()
  if mesh is None:
    return params
  return jax.tree_util.tree_map_with_path(
      lambda key_path, x: jax.lax.with_sharding_constraint(
          x, param_rules.param_spec(
              param_rules.leaf_path(key_path), x.shape, mesh.shape["fsdp"], min_size)), params)


def gather_params(params: Any, min_size: int, dtype: Any) -> Any:
  """Gathers weights that `fsdp` splits onto every device, float32 ones rounded to `dtype` before.

  Arrays that the tables replicate stay as they are, and so do those that a network uses split.

  Args:
    params: tree with the parameters' paths.
    min_size: see param_rules.place.
    dtype: in which the networks compute.
  """
  mesh = _current_mesh()
  if mesh is None:
    return params

  def gather(key_path, x):
    path = param_rules.leaf_path(key_path)
    placement = param_rules.place(path, x.shape, mesh.shape["fsdp"], min_size)
    if not placement.spec or placement.used_split:
      return x
    if x.dtype == jnp.float32 and dtype != jnp.float32 and not param_rules.in_float32(path):
      # Rounded where it lives: without this constraint the compiler may gather float32 and round then.
      x = jax.lax.with_sharding_constraint(x.astype(dtype), P(*placement.spec))
    return jax.lax.with_sharding_constraint(x, P())

  return jax.tree_util.tree_map_with_path(gather, params)
