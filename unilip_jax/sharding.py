"""The device mesh and where every array lives on it.

Two axes: `data` replicates parameters and splits the batch; `fsdp` splits both. Which dimension of a
parameter is split stands in sharding_rules.py; which of an activation, in ACTIVATIONS below. With
several slices `data` runs across them, so that only gradients cross the slower network. The only file
that builds meshes: JAX has changed the default axis types between releases.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from unilip_jax import batch as batch_lib
from unilip_jax import sharding_rules

DATA_AXES = ("data", "fsdp")  # the batch is split over both

# Activations by name. Without these the partitioner may follow a parameter's split instead, and gather
# the batch: it does so behind the embedding table.
ACTIVATIONS = {
    "image": P(DATA_AXES),  # [B, R, R, 3]
    "map": P(DATA_AXES),  # [B, H, W, C] inside a convolutional network
    "tokens": P(DATA_AXES),  # [B, L, D] inside a transformer
    "features": P(DATA_AXES),  # [B, L, D] of mlp1
    "latents": P(DATA_AXES),  # [B, h, w, C]
    "time": P(DATA_AXES),  # [B, D] or [B, 6, D], what the DiT makes of the time
    "context": P(DATA_AXES),  # [B, S, D], what the DiT's cross-attention reads
    "logits": P(DATA_AXES),  # [..., V], the batch first
    "entry": P(DATA_AXES),  # of a batch
    "micro_batches": P(None, DATA_AXES),  # [A, B/A, ...] of gradient accumulation
    # [B, L, D] right behind the embedding table: each device has its columns of its group's tokens.
    # Its gradient then needs no copy of the whole table (74 MB of temporaries in place of 1037 MB for a
    # batch of 512 × 512 at 1b on v5e:16x16).
    "embedded": P("data", None, "fsdp"),
}


# ---- meshes


def make_mesh(
    data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None, slices: int = 0) -> Mesh:
  """Builds the mesh.

  Args:
    data: size of the axis that replicates parameters; -1 takes all remaining devices.
    fsdp: size of the axis that shards parameters, at most sharding_rules.MAX_FSDP.
    devices: defaults to all devices; those of a topology that nobody owns will do.
    slices: see `device_grid`.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices, or fsdp is too large or does not
      fit into a slice.
  """
  devices = jax.devices() if devices is None else list(devices)
  if fsdp < 1 or len(devices) % fsdp:
    raise ValueError(
        f"mesh.fsdp={fsdp} does not divide {len(devices)} devices; choose one of "
        f"{[n for n in _divisors(len(devices)) if n <= sharding_rules.MAX_FSDP]}")
  if fsdp > sharding_rules.MAX_FSDP:
    raise ValueError(
        f"mesh.fsdp={fsdp}: the models' widths (896, 1152, 2240) do not divide further than "
        f"{sharding_rules.MAX_FSDP}; set mesh.fsdp="
        f"{max(n for n in _divisors(len(devices)) if n <= sharding_rules.MAX_FSDP)} and mesh.data=-1")
  if data == -1:
    data = len(devices) // fsdp
  if data * fsdp != len(devices):
    raise ValueError(
        f"mesh data={data} × fsdp={fsdp} is not the {len(devices)} devices; set mesh.data=-1")
  return Mesh(device_grid(devices, data, fsdp, slices), DATA_AXES,
              axis_types=(AxisType.Auto, AxisType.Auto))


def config_mesh(config: Any, devices: Sequence[Any] | None = None) -> Mesh:
  """`make_mesh` of a config's `mesh`."""
  return make_mesh(config.mesh.data, config.mesh.fsdp, devices, config.mesh.slices)


def _divisors(count: int) -> list[int]:
  return [n for n in range(1, count + 1) if count % n == 0]


def device_grid(devices: Sequence[Any], data: int, fsdp: int, slices: int = 0) -> np.ndarray:
  """Devices in the mesh's order, [data, fsdp]: neighbours of the network beside each other.

  Args:
    devices: data · fsdp of them.
    data: rows.
    fsdp: columns; a row never leaves its slice.
    slices: groups of devices with a fast network inside (TPU slices, NVLink domains). 0 takes what the
      devices say; 1 treats all as one group; another number has to be what they say, or the number of
      processes where they say nothing.

  Raises:
    ValueError: if the slices do not fit.
  """
  said = len({getattr(d, "slice_index", None) for d in devices})
  processes = len({d.process_index for d in devices})
  count = slices or said
  if count == 1:
    return mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
  by_process = said == 1 and count == processes
  if count != said and not by_process:
    raise ValueError(
        f"mesh.slices={slices}, but the devices form {said} slices and belong to {processes} "
        "processes; set mesh.slices=0")
  if data % count:
    raise ValueError(
        f"mesh.fsdp={fsdp} does not fit into one of {count} slices of {len(devices) // count} devices, "
        f"which data={data} would have to divide into; choose mesh.fsdp from "
        f"{[n for n in _divisors(len(devices) // count) if n <= sharding_rules.MAX_FSDP]} and mesh.data=-1")
  return mesh_utils.create_hybrid_device_mesh(
      (data // count, fsdp), (count, 1), devices, process_is_granule=by_process,
      allow_split_physical_axes=True)


# ---- batches


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch(mesh: Mesh) -> NamedSharding:
  """The leading dimension split over all devices."""
  return NamedSharding(mesh, P(DATA_AXES))


def check_batch_size(size: int, mesh: Mesh, name: str) -> None:
  """Raises ValueError if `size` does not divide over the devices."""
  if size % mesh.size:
    raise ValueError(
        f"{name}={size} does not divide over {mesh.size} devices; "
        f"choose a multiple, e.g. {math.ceil(size / mesh.size) * mesh.size}")


def check_batch(config: Any, mesh: Mesh) -> None:
  """Raises ValueError if a (sub-)batch of training does not divide over micro-batches and devices."""
  unit = mesh.size * config.accumulate
  parts = batch_lib.part_sizes(config)
  for name, size in parts.items():
    if size % unit == 0:
      continue
    over = f"{mesh.size} devices" + (
        f" × accumulate={config.accumulate}" if config.accumulate > 1 else "")
    if len(parts) == 1:
      raise ValueError(f"batch_size={size} does not divide over {over}; choose a multiple of {unit}, "
                       f"e.g. {math.ceil(size / unit) * unit}")
    raise ValueError(
        f"batch_size={config.batch_size} makes sub-batches {parts}, and {name} does not divide over "
        f"{over}; set data.part_multiple={unit} and batch_size to a multiple of it that leaves "
        f"data.edit_share={config.data.edit_share} about right")


# ---- parameters


def param_spec(path: str, shape: tuple[int, ...], fsdp: int, min_size: int) -> P:
  """PartitionSpec of one parameter; see sharding_rules.place."""
  return P(*sharding_rules.place(path, shape, fsdp, min_size).spec)


def _path(key_path: Any) -> str:
  """Of a leaf: the keys of the dicts above it, so that a moment has its parameter's path."""
  return "/".join(str(k.key) for k in key_path if isinstance(k, jax.tree_util.DictKey))


def tree_shardings(abstract: Any, mesh: Mesh, min_size: int) -> Any:
  """NamedShardings for any pytree of arrays: parameters, optimizer moments, EMA, counters.

  Leaves below dicts get the spec of their own shape; moments have their parameter's path and shape,
  hence its spec.
  """
  fsdp = mesh.shape["fsdp"]
  return jax.tree_util.tree_map_with_path(
      lambda key_path, leaf: NamedSharding(
          mesh, param_spec(_path(key_path), leaf.shape, fsdp, min_size)), abstract)


def put(host_tree: Any, shardings: Any) -> Any:
  """Places host arrays, equal on every process, as global arrays."""
  def one(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(one, host_tree, shardings)


# ---- inside a program


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
  if mesh.empty or mesh.axis_names != DATA_AXES or mesh.size == 1:
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
  local = [constrain(p, "entry").reshape(count, -1, *p.shape[1:]) for p in parts]
  whole = constrain(jnp.concatenate(local, axis=1), "entry")
  return constrain(whole.reshape(-1, *whole.shape[2:]), "entry")


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
  local = constrain(x, "entry").reshape(count, -1, *x.shape[1:])
  ends = np.cumsum(rows) // count
  cut = jnp.split(constrain(local, "entry"), ends[:-1], axis=1)
  return [constrain(p.reshape(-1, *x.shape[1:]), "entry") for p in cut]


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
          x, param_spec(_path(key_path), x.shape, mesh.shape["fsdp"], min_size)), params)
