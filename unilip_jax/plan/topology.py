"""Parses names of device arrangements, and makes devices to compile for that are not here.

  v5e:16x16     one slice of 256 TPU v5e chips          v5p:4x4x4     64 chips of v5p
  v5e:16x16*2   two such slices                         h100:8        eight GPUs of one node

The only file that uses jax.experimental.topologies.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from typing import Any

import jax

from unilip_jax.plan import chips
from unilip_jax.sharding import mesh as mesh_lib

# Slices that Google rents (docs.cloud.google.com/tpu/docs/v5e, v6e, v5p-training); for the message.
_SHAPES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
}
_GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Topology:
  """A named arrangement of devices.

  Attributes:
    name: as given.
    generation: key of chips.CHIPS.
    shape: chips per axis of one slice; (count,) for GPUs.
    slices: number of slices, connected by the data centre's network.
  """

  name: str
  generation: str
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> chips.Chip:
    return chips.CHIPS[self.generation]

  @property
  def size(self) -> int:
    """Number of chips of all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def inside(self) -> int:
    """Number of chips of one slice or node, between which the network is fast."""
    chips_of_slice = self.size // self.slices
    return min(chips_of_slice, chips.GPUS_PER_NODE) if self.chip.kind == "gpu" else chips_of_slice


def known() -> list[str]:
  """Lists the names that `parse` takes, without slices."""
  names = [f"{kind}:{shape}" for kind, shapes in _SHAPES.items() for shape in shapes]
  return names + [f"{kind}:{n}" for kind in chips.CHIPS if kind not in _SHAPES for n in _GPU_COUNTS]


def larger(than: Topology) -> list[Topology]:
  """Returns the known topologies of the same kind of chip with more chips, smallest first."""
  found = [parse(name) for name in known() if name.split(":")[0] == than.generation]
  return sorted((t for t in found if t.size > than.size), key=lambda t: t.size)


def parse(name: str) -> Topology:
  """Parses a name.

  Raises:
    ValueError: for an unknown topology, with the known ones.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", name.strip())
  if not match or match[1] not in chips.CHIPS:
    near = difflib.get_close_matches(name.strip(), known(), n=1, cutoff=0.0)[0]
    raise ValueError(f"--topology={name!r}: unknown; the nearest is {near}; known are "
                     f"{', '.join(known())}, and NAME*2 for two TPU slices")
  generation, slices = match[1], int(match[3] or 1)
  shape = tuple(int(n) for n in match[2].split("x"))
  is_tpu = generation in _SHAPES
  if is_tpu and match[2] not in _SHAPES[generation]:
    raise ValueError(f"--topology={name!r}: {generation} has no such slice; it has "
                     f"{', '.join(_SHAPES[generation])}")
  if not is_tpu and (len(shape) > 1 or slices > 1 or
                     (shape[0] > chips.GPUS_PER_NODE and shape[0] % chips.GPUS_PER_NODE)):
    raise ValueError(f"--topology={name!r}: GPUs are given by number, {generation}:8; beyond one "
                     f"node, complete nodes of {chips.GPUS_PER_NODE}")
  return Topology(name.strip(), generation, shape, slices)


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
