"""Makes devices to compile for that are not here. The only file that uses jax.experimental.topologies."""

import importlib.util
import math
import os
from typing import Any

import jax

from unilip_jax.plan import device_names
from unilip_jax.sharding import mesh as mesh_lib

Topology = device_names.Topology
known = device_names.known
larger = device_names.larger
parse = device_names.parse


def require_compiler(topology: Topology) -> None:
  """Raises ValueError without libtpu, with the way to install it."""
  if not (os.environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu")):
    raise ValueError(
        f"planning for {topology.name} needs libtpu, the TPU's compiler, which also runs without a "
        "TPU: pip install -r requirements-plan.txt (or give --topology of GPUs, e.g. h100:8, which are "
        "planned without compiling)")


def devices(topology: Topology) -> list[Any]:
  """Returns the devices of a TPU topology, to compile for; none of them exists here.

  Raises:
    ValueError: without libtpu.
  """
  require_compiler(topology)
  # No chip is used: several processes may load libtpu, and none needs the cloud's metadata.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  from jax.experimental import topologies

  options: dict[str, Any] = {}
  if math.prod(topology.shape) == 1:
    options["chips_per_host_bounds"] = [1, 1, 1]
  if topology.slices > 1:
    options["num_slices"] = topology.slices
  name = f"{topology.generation}:{'x'.join(map(str, topology.shape))}"
  return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)


def one_chip(topology: Topology) -> jax.sharding.Sharding:
  """Returns the sharding of arrays on one chip of a TPU topology, to compile for.

  Raises:
    ValueError: without libtpu.
  """
  return jax.sharding.SingleDeviceSharding(devices(topology)[0])


def mesh(topology: Topology, config: Any) -> jax.sharding.Mesh | jax.sharding.AbstractMesh:
  """Returns the mesh that a run there would build; for GPUs an abstract one, without devices.

  Raises:
    ValueError: if config.mesh does not fit the number of chips.
  """
  if topology.chip.kind == "tpu":
    return mesh_lib.config_mesh(config, devices(topology))
  data = config.mesh.data
  fsdp = mesh_lib.chosen_fsdp(data, config.mesh.fsdp, topology.size, topology.inside)
  if data == -1:
    data = topology.size // fsdp
  if fsdp < 1 or data * fsdp != topology.size:
    raise ValueError(f"mesh data={data} × fsdp={fsdp} is not the {topology.size} GPUs of "
                     f"{topology.name}; set mesh.data=-1 and mesh.fsdp to a divisor")
  return jax.sharding.AbstractMesh(
      (data, fsdp), mesh_lib.DATA_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
