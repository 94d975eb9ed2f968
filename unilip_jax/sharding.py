"""The device mesh and where every array lives on it.

Two axes: `data` replicates parameters and splits the batch; `fsdp` splits both. The models here are
at most 3B with two kv heads, so no tensor axis is needed. A parameter is split over `fsdp` along its
largest dimension that divides, never along the scanned layer axis; small ones stay replicated.
The only file that builds meshes: JAX has changed the default axis types between releases.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from unilip_jax import tree

DATA_AXES = ("data", "fsdp")  # the batch is split over both


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
  """Builds the mesh.

  Args:
    data: size of the axis that replicates parameters; -1 takes all remaining devices.
    fsdp: size of the axis that shards parameters.
    devices: defaults to all devices.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    raise ValueError(
        f"mesh.fsdp={fsdp} does not divide {len(devices)} devices; choose one of "
        f"{[n for n in range(1, len(devices) + 1) if len(devices) % n == 0]}")
  if data == -1:
    data = len(devices) // fsdp
  if data * fsdp != len(devices):
    raise ValueError(
        f"mesh data={data} × fsdp={fsdp} is not the {len(devices)} devices; set mesh.data=-1")
  return jax.make_mesh(
      (data, fsdp), DATA_AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


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


def param_spec(path: str, shape: tuple[int, ...], fsdp: int, min_size: int) -> P:
  """PartitionSpec of one parameter.

  Args:
    path: "/"-joined; a path with a `layers` key has a leading layer axis, which is never split.
    shape: of the array.
    fsdp: size of that mesh axis.
    min_size: arrays with fewer elements stay replicated.
  """
  if fsdp == 1 or math.prod(shape) < min_size:
    return P()
  first = 1 if tree.is_scanned(path) else 0
  dims = [d for d in range(first, len(shape)) if shape[d] % fsdp == 0]
  if not dims:
    return P()
  best = max(dims, key=lambda d: (shape[d], d))
  return P(*(None,) * best, "fsdp")


def tree_shardings(abstract: Any, mesh: Mesh, min_size: int) -> Any:
  """NamedShardings for any pytree of arrays: parameters, optimizer moments, EMA, counters.

  Leaves below dicts get the spec of their own shape; moments have their parameter's path and shape,
  hence its spec.
  """
  fsdp = mesh.shape["fsdp"]

  def of_leaf(key_path, leaf):
    path = "/".join(str(k.key) for k in key_path if isinstance(k, jax.tree_util.DictKey))
    return NamedSharding(mesh, param_spec(path, leaf.shape, fsdp, min_size))

  return jax.tree_util.tree_map_with_path(of_leaf, abstract)


def report(abstract: Mapping[str, Any], mesh: Mesh, min_size: int) -> list[dict[str, Any]]:
  """One row per array: path, shape, spec, bytes per device, and why a large one is replicated."""
  rows = []
  for path, leaf in tree.flatten(abstract).items():
    spec = param_spec(path, leaf.shape, mesh.shape["fsdp"], min_size)
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    split = any(axis is not None for axis in spec)
    why = ""
    if not split and mesh.shape["fsdp"] > 1:
      why = "small" if math.prod(leaf.shape) < min_size else "no dimension divides"
    rows.append({
        "path": path, "shape": tuple(leaf.shape), "spec": str(spec),
        "bytes_per_device": size // (mesh.shape["fsdp"] if split else 1), "why_replicated": why})
  return rows


def put(host_tree: Any, shardings: Any) -> Any:
  """Places host arrays, equal on every process, as global arrays."""
  def one(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(one, host_tree, shardings)
