"""How activations are split over the mesh, by name.

Without these constraints the partitioner may follow a parameter's split instead and gather the batch, as
it does after the embedding table.
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
    # [B, L, D] right after the embedding table: each device has its columns of its group's tokens.
    # Its gradient then needs no copy of the full table (74 MB of temporaries instead of 1037 MB for a
    # batch of 512 × 512 at 1b on v5e:16x16).
    "embedded": P("data", None, "fsdp"),
}


def under(mesh: Mesh, fn: Callable[..., Any]) -> Callable[..., Any]:
  """`fn`, traced with `mesh` in view of `constrain`; to be jitted."""
  @functools.wraps(fn)
  def wrapped(*args, **kwargs):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(*args, **kwargs)

  return wrapped


def _mesh_in_view() -> Any:
  """The abstract mesh of `under`, or None where there is none or but one device."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != mesh_lib.DATA_AXES or mesh.size == 1:
    return None
  return mesh


def join(parts: Sequence[jax.Array]) -> jax.Array:
  """Joins sub-batches to one batch without moving an example to another device.

  On every device the rows of the first part come first. In which order the rows of the whole stand
  therefore depends on the mesh; `part` undoes it.

  Args:
    parts: [B_i, ...] each, split over the devices of the mesh in view.

  Returns:
    [Σ B_i, ...]. Where a part does not divide over the devices, the parts one after another.
  """
  if len(parts) == 1:
    return parts[0]
  count = _devices_between([p.shape[0] for p in parts])
  local = [constrain(p, "batch").reshape(count, -1, *p.shape[1:]) for p in parts]
  whole = constrain(jnp.concatenate(local, axis=1), "batch")
  return constrain(whole.reshape(-1, *whole.shape[2:]), "batch")


def part(x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
  """The inverse of `join`.

  Args:
    x: [B, ...].
    sizes: of the parts, or what they are in proportion to.

  Returns:
    arrays of B · sizes[i] / Σ sizes rows.
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
  """Devices that parts of these rows are split over; 1 where one does not divide."""
  mesh = _mesh_in_view()
  return 1 if mesh is None or any(n % mesh.size for n in rows) else mesh.size


def constrain(x: jax.Array, name: str) -> jax.Array:
  """Says how an activation is split; does nothing outside `under`.

  Args:
    x: of the rank that ACTIVATIONS gives; further dimensions are whole.
    name: of ACTIVATIONS. Where a dimension does not divide over its axes, nothing is said.
  """
  spec, mesh = ACTIVATIONS[name], _mesh_in_view()
  if mesh is None:
    return x
  sizes = [math.prod(mesh.shape[a] for a in (axes if isinstance(axes, tuple) else (axes,)))
           if axes else 1 for axes in spec]
  if any(n % size for n, size in zip(x.shape, sizes)):
    return x
  return jax.lax.with_sharding_constraint(x, spec)


def constrain_params(params: Any, min_size: int) -> Any:
  """Splits a tree with parameters' paths, e.g. gradients, as the parameters are; see `constrain`."""
  mesh = _mesh_in_view()
  if mesh is None:
    return params
  return jax.tree_util.tree_map_with_path(
      lambda key_path, x: jax.lax.with_sharding_constraint(
          x, param_rules.param_spec(
              param_rules.leaf_path(key_path), x.shape, mesh.shape["fsdp"], min_size)), params)
