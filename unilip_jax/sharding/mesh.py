"""The device mesh, and how batches are split over it.

Two axes: `data` replicates parameters and splits the batch; `fsdp` splits both. With several slices
`data` runs across them, so that only gradients cross the slower network. The only file that builds
meshes: JAX has changed the default axis types between releases.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from unilip_jax.sharding import param_rules

DATA_AXES = ("data", "fsdp")  # the batch is split over both
AUTOMATIC = -1  # of mesh.fsdp
_AUTOMATIC_FSDP = 16  # at most; beyond it the state shrinks little (docs/scaling.md)


def make_mesh(
    data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None, slices: int = 0) -> Mesh:
  """Builds the mesh.

  Args:
    data: size of the axis that replicates parameters; -1 takes all remaining devices.
    fsdp: size of the axis that shards parameters, at most param_rules.MAX_FSDP; -1: see `chosen_fsdp`.
    devices: defaults to all devices; those of a topology that is only planned for are allowed.
    slices: see `device_grid`.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices, or fsdp is too large or does not
      fit into a slice.
  """
  devices = jax.devices() if devices is None else list(devices)
  groups = slices or len({getattr(d, "slice_index", None) for d in devices})
  fsdp = chosen_fsdp(data, fsdp, len(devices), len(devices) // groups)
  if fsdp < 1 or len(devices) % fsdp:
    raise ValueError(
        f"mesh.fsdp={fsdp} does not divide {len(devices)} devices; choose one of "
        f"{[n for n in _divisors(len(devices)) if n <= param_rules.MAX_FSDP]}")
  if fsdp > param_rules.MAX_FSDP:
    raise ValueError(
        f"mesh.fsdp={fsdp}: the models' widths (896, 1152, 2240) do not divide further than "
        f"{param_rules.MAX_FSDP}; set mesh.fsdp="
        f"{max(n for n in _divisors(len(devices)) if n <= param_rules.MAX_FSDP)} and mesh.data=-1")
  if data == -1:
    data = len(devices) // fsdp
  if data * fsdp != len(devices):
    raise ValueError(
        f"mesh data={data} × fsdp={fsdp} is not the {len(devices)} devices; set mesh.data=-1")
  return Mesh(device_grid(devices, data, fsdp, slices), DATA_AXES,
              axis_types=(AxisType.Auto, AxisType.Auto))


def chosen_fsdp(data: int, fsdp: int, devices: int, inside: int) -> int:
  """Returns mesh.fsdp; for -1 what `data` leaves, or the largest divisor up to 16 of `inside`.

  Args:
    data: mesh.data.
    fsdp: mesh.fsdp.
    devices: their number.
    inside: devices of one slice or node, between which the network is fast.
  """
  if fsdp != AUTOMATIC:
    return fsdp
  if data != -1:
    return max(1, devices // data) if data > 0 else 1
  return max(n for n in _divisors(max(1, inside)) if n <= _AUTOMATIC_FSDP)


def config_mesh(config: Any, devices: Sequence[Any] | None = None) -> Mesh:
  """Builds the mesh of a config's `mesh` section."""
  return make_mesh(config.mesh.data, config.mesh.fsdp, devices, config.mesh.slices)


def _divisors(count: int) -> list[int]:
  return [n for n in range(1, count + 1) if count % n == 0]


def device_grid(devices: Sequence[Any], data: int, fsdp: int, slices: int = 0) -> np.ndarray:
  """Orders devices for the mesh, [data, fsdp], so that neighbours in the network are next to each other.

  Args:
    devices: data · fsdp of them.
    data: rows.
    fsdp: columns; all devices of a row are in one slice.
    slices: groups of devices with a fast network inside (TPU slices, NVLink domains). 0 takes the devices'
      own slice_index; 1 treats all as one group; another number has to be the number of their slices, or
      of processes where the devices have no slice_index.

  Raises:
    ValueError: if the slices do not fit.
  """
  own = len({getattr(d, "slice_index", None) for d in devices})
  processes = len({d.process_index for d in devices})
  count = slices or own
  if count == 1:
    return mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
  by_process = own == 1 and count == processes
  if count != own and not by_process:
    raise ValueError(
        f"mesh.slices={slices}, but the devices form {own} slices and belong to {processes} "
        "processes; set mesh.slices=0")
  if data % count:
    raise ValueError(
        f"mesh.fsdp={fsdp} does not fit into one of {count} slices of {len(devices) // count} devices, "
        f"which data={data} would have to divide into; choose mesh.fsdp from "
        f"{[n for n in _divisors(len(devices) // count) if n <= param_rules.MAX_FSDP]} and mesh.data=-1")
  return mesh_utils.create_hybrid_device_mesh(
      (data // count, fsdp), (count, 1), devices, process_is_granule=by_process,
      allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that keeps a copy on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits the leading dimension over all devices."""
  return NamedSharding(mesh, P(DATA_AXES))


def check_batch_size(size: int, mesh: Mesh, name: str) -> None:
  """Checks that `size` divides over the devices.

  Raises:
    ValueError: naming the setting `name` and a size that does.
  """
  if size % mesh.size:
    raise ValueError(
        f"{name}={size} does not divide over {mesh.size} devices; "
        f"choose a multiple, e.g. {math.ceil(size / mesh.size) * mesh.size}")


def put(host_tree: Any, shardings: Any) -> Any:
  """Places host arrays, equal on every process, as global arrays."""
  def one(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(one, host_tree, shardings)


def local_rows(array: jax.Array) -> np.ndarray:
  """Returns this process's part of an array that is sharded over its first axis, in order."""
  shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(s.data) for s in shards])
