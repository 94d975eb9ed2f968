"""Names of device arrangements; imports no JAX, so that scripts check a name at once.

  v5e:16x16     one slice of 256 TPU v5e chips          v5p:4x4x4     64 chips of v5p
  v5e:16x16*2   two such slices                         h100:8        eight GPUs of one node
"""

import dataclasses
import difflib
import math
import re

from unilip_jax.plan import chips

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
    raise ValueError(f"--topology={name!r}: unknown; known are {', '.join(known())}, and "
                     f"NAME*2 for two TPU slices; the nearest is {near}")
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
