"""Parses which devices take part in a collective together, from every form in which XLA writes it.

  replica_groups={{0,1},{2,3}}               lists
  replica_groups={}                          all devices in one group
  replica_groups=[8,32]<=[256]               8 rows of 0 … 255
  replica_groups=[8,32]<=[32,8]T(1,0)        the same of a transposed array
  replica_groups=mesh['a'=16,'b'=16] {'b'}   along axes of a mesh of devices
  replica_groups=mesh['a'=16,'b'=16], device_ids=([16,16]T(1,0)) {'a'}    of a mesh in another order
  replica_groups=mesh['a'=16] {'a':(2)4}     along a part of an axis: 2 before it, 4 of it
  source_target_pairs={{0,1},{1,0}}          of collective-permute
"""

from collections.abc import Sequence
import functools
import math
import re

import numpy as np

Groups = tuple[tuple[int, ...], ...]
_KEY = re.compile(r"\b(replica_groups|source_target_pairs)=")
_LISTS = re.compile(r"\{\s*((?:\{[\d,\s]*\}[,\s]*)*)\}")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:,\s*device_ids=\(([^{}]*)\))?\s*\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def parse(attributes: str, devices: int = 0) -> Groups:
  """Returns the groups of a collective; of a collective-permute the pairs (source, target).

  Args:
    attributes: of the instruction.
    devices: of the program; needed where the groups are `{}`.

  Raises:
    ValueError: for a form that is not one of those above, or one whose numbers do not agree.
  """
  key = _KEY.search(attributes)
  if not key:
    raise ValueError(f"plan: a collective without replica_groups: {attributes[:200]}")
  return _parse(attributes[key.end():], devices)


@functools.lru_cache(maxsize=1024)
def _parse(text: str, devices: int) -> Groups:
  try:
    if match := _LISTS.match(text):
      groups = [_numbers(g) for g in re.findall(r"\{([\d,\s]*)\}", match[1])]
      if not groups and not devices:
        raise ValueError("the number of devices is not known")
      return tuple(groups) or (tuple(range(devices)),)
    if match := _MESH.match(text):
      return _along_axes(*match.groups(default=""))
    if match := _IOTA.match(text):
      if not match[2]:
        raise ValueError("no <=[...]")
      return _rows(_iota(match[2], match[3]).reshape(_numbers(match[1])))
    raise ValueError("an unknown form")
  except ValueError as error:
    raise ValueError(f"plan: cannot read the groups of a collective, {error}: {text[:200]}; "
                     "unilip_jax/plan/replica_groups.py has the known forms") from error


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(",") if n.strip())


def _iota(dims: str, order: str | None) -> np.ndarray:
  """Returns 0, 1, … in the shape `dims`, transposed to `order`."""
  shape = _numbers(dims)
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose(_numbers(order)) if order else ids


def _rows(ids: np.ndarray) -> Groups:
  if ids.ndim != 2:
    raise ValueError(f"{ids.ndim} dimensions, not groups × members")
  return tuple(tuple(row) for row in ids.tolist())


def _along_axes(axes: str, order: str, named: str) -> Groups:
  """Groups devices that differ only along the named axes, or parts of axes, of a mesh."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  if not sizes or re.sub(r"'[^']+'=\d+,?\s*", "", axes):
    raise ValueError("axes that are not 'name'=size")
  if _AXIS.sub("", named).strip(", "):
    raise ValueError("axes that are not 'name' or 'name':(before)size")
  ids = _mesh_ids(order, list(sizes.values()))
  cuts: dict[str, list[tuple[int, int]]] = {}  # {axis: parts of it: (devices before, size)}
  for name, before, part in _AXIS.findall(named):
    if name not in sizes:
      raise ValueError(f"no axis {name!r} in the mesh")
    cuts.setdefault(name, []).append((int(before or 1), int(part or sizes[name])))
  shape: list[int] = []
  member: list[bool] = []
  for name, size in sizes.items():
    done = 1
    for before, part in sorted(cuts.get(name, [])):
      if before % done or size % (before * part):
        raise ValueError(f"parts of axis {name!r} that do not divide it")
      shape += [before // done, part]
      member += [False, True]
      done = before * part
    shape.append(size // done)
    member.append(False)
  inner = [k for k, m in enumerate(member) if m]
  outer = [k for k, m in enumerate(member) if not m]
  width = math.prod(shape[k] for k in inner)
  return _rows(ids.reshape(shape).transpose(outer + inner).reshape(-1, width))


def _mesh_ids(order: str, sizes: Sequence[int]) -> np.ndarray:
  """Returns the devices of a mesh: in order, or as `device_ids` has them."""
  if not order:
    return np.arange(math.prod(sizes)).reshape(sizes)
  match = _IOTA.fullmatch(order.strip())
  if match:  # ([16,16]T(1,0)): the iota's own shape; ([4,64]<=[64,4]T(1,0)): the mesh's shape first
    return _iota(match[2] or match[1], match[3]).reshape(sizes)
  if not re.fullmatch(r"[\d,\s]+", order):
    raise ValueError("device_ids that are neither numbers nor [dimensions]T(order)")
  return np.array(_numbers(order)).reshape(sizes)
