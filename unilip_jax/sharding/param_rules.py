"""Which dimension of each parameter the `fsdp` axis splits: one table per network.

A table is rows of (regex over the parameter's path, spec). A spec has one entry per dimension, without
the leading axis of scanned layers, which is never split: "fsdp" or None. `()` replicates an array on every
device. The first row that matches an array and can be applied to it wins. The last row of every table is
AUTOMATIC: the largest dimension that divides, the last of equal ones. It also pads least on a TPU, whose
tiles are 8 × 128: the DiT's [1152, 3456] over 64 devices takes 4 % more than its bytes split along 3456
and 14 % more along 1152. So a row above it needs a reason, given as a comment.

Small arrays are replicated whatever their row: gathering one costs a collective in every layer and saves
next to nothing. Small means below `min_size` elements in one layer.

There is no tensor axis: the models have at most 3B parameters and two key-value heads.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unilip_jax.common import tree

FSDP = "fsdp"
# 896 = 64·14, 1152 = 64·18 and 2240 = 64·35, the widths at 1b and 3b, divide by no larger size that
# all share.
MAX_FSDP = 64

Spec = tuple[str | None, ...]
Row = tuple[str, Spec | None]
AUTOMATIC: Row = ("", None)

_DEPTHWISE: Row = ("depthwise/kernel$", ())
_DCAE = ((r"(multiscale_\d+_in|conv_depth)/kernel$", ()), AUTOMATIC)  # depthwise, too

TABLES: Mapping[str, Sequence[Row]] = {
    # Split by rows, [151 680, 896] would be gathered for every lookup (259 MB in bfloat16). Split by
    # columns, each device looks up its own for all tokens of its row of the mesh, and an all-to-all
    # collects a token's columns (`embedded` in activations.py).
    "llm": (("embedding$", (None, FSDP)), AUTOMATIC),
    # Every example uses all of them, and they are 0.9 MB.
    "queries": (("queries$", ()), AUTOMATIC),
    # A depthwise kernel (0.4 MB at 3b) split by channels makes the partitioner split the maps by channels
    # too: it gathers the batch before and after every such convolution. The modulation's tables
    # are added to something of every example.
    "dit": (_DEPTHWISE, ("scale_shift$", ()), AUTOMATIC),
    "decoder": _DCAE,
    "encoder": _DCAE,
    "convnext": (_DEPTHWISE, AUTOMATIC),
}
_FLOAT32 = ("dit/out/kernel$",)  # large weights that a bfloat16 network uses in float32
_OTHERS: Sequence[Row] = (AUTOMATIC,)  # ViT, mlp1, latent head, connector, GAN and loss networks


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where one array lives.

  Attributes:
    spec: one entry per dimension up to the split one, the layer axis included; () if replicated.
    why: why it is replicated, or why a row above the automatic one was skipped; "" if neither.
    used_split: a row above the automatic one splits it, since the network uses it split.
  """

  spec: Spec
  why: str = ""
  used_split: bool = False


def family(path: str) -> str:
  """Returns the network that a path belongs to: its first key that has a table, "" for none.

  The teacher's copy and a moment of the optimizer use the table of their network.
  """
  return next((key for key in path.split("/") if key in TABLES), "")


def table_of(path: str) -> Sequence[Row]:
  """Returns the rows that apply to a path."""
  return TABLES.get(family(path), _OTHERS)


def place(path: str, shape: Sequence[int], fsdp: int, min_size: int) -> Placement:
  """Applies the table.

  Args:
    path: "/"-joined; a path with a `layers` key has a leading layer axis.
    shape: of the array.
    fsdp: size of that mesh axis.
    min_size: arrays with fewer elements in one layer are replicated.

  Raises:
    ValueError: if a row's spec does not have the array's rank.
  """
  stacked = int(tree.is_scanned(path))
  layer = tuple(shape[stacked:])
  if fsdp == 1:
    return Placement((), "fsdp is 1")
  if math.prod(layer) < min_size:
    return Placement((), "small")
  skipped = ""
  for pattern, spec in table_of(path):
    if not re.search(pattern, path):
      continue
    if spec == ():
      return Placement((), f"row {pattern!r}")
    if spec is None:
      dims = [d for d, size in enumerate(layer) if size % fsdp == 0]
      if dims:
        return _split(max(dims, key=lambda d: (layer[d], d)) + stacked, skipped)
      continue
    if len(spec) != len(layer):
      raise ValueError(
          f"sharding/param_rules.py: row {pattern!r} has {len(spec)} dimensions, {path} has {len(layer)} "
          f"without the layer axis: {layer}")
    dim = spec.index(FSDP)
    if layer[dim] % fsdp == 0:
      return _split(dim + stacked, skipped, used_split=True)
    skipped = f"row {pattern!r}: {layer[dim]} does not divide"
  return Placement((), f"no dimension divides by {fsdp}")


def _split(dim: int, why: str, used_split: bool = False) -> Placement:
  return Placement((*(None,) * dim, FSDP), why, used_split)


def in_float32(path: str) -> bool:
  """Tells whether a network that computes in bfloat16 uses this weight in float32."""
  return any(re.search(pattern, path) for pattern in _FLOAT32)


def check(paths: Iterable[str], tables: Mapping[str, Sequence[Row]] | None = None) -> None:
  """Checks that every row of every network in use decides about some array.

  Args:
    paths: of all parameters of a task, trained and frozen.
    tables: TABLES by default.

  Raises:
    ValueError: for a row that matches no parameter, or only parameters that a row above it matches, and
      for a table that does not end with AUTOMATIC. A misspelt row would otherwise go unnoticed.
  """
  paths = list(paths)
  for name, table in (TABLES if tables is None else tables).items():
    if not table or table[-1] != AUTOMATIC:
      raise ValueError(f"sharding/param_rules.py: the table of {name} must end with AUTOMATIC")
    own = [path for path in paths if name in path.split("/")]
    if not own:
      continue
    matched: dict[str, str] = {}
    for pattern, _ in table[:-1]:
      matches = [path for path in own if re.search(pattern, path)]
      if not matches:
        raise ValueError(
            f"sharding/param_rules.py: row {pattern!r} of {name} matches no parameter; paths look like "
            f"{own[0]!r}")
      if all(path in matched for path in matches):
        raise ValueError(
            f"sharding/param_rules.py: row {pattern!r} of {name} is dead: {matches[0]!r} is matched by row "
            f"{matched[matches[0]]!r} above it")
      for path in matches:
        matched.setdefault(path, pattern)


def param_spec(path: str, shape: tuple[int, ...], fsdp: int, min_size: int) -> P:
  """Returns the PartitionSpec of one parameter; see `place`."""
  return P(*place(path, shape, fsdp, min_size).spec)


def leaf_path(key_path: Any) -> str:
  """Joins the keys of the dicts above a leaf, so that a moment has its parameter's path."""
  return "/".join(str(k.key) for k in key_path if isinstance(k, jax.tree_util.DictKey))


def tree_shardings(abstract: Any, mesh: Mesh, min_size: int) -> Any:
  """Returns NamedShardings of any pytree of arrays: parameters, optimizer moments, EMA, counters.

  Leaves below dicts get the spec of their own shape; moments have their parameter's path and shape,
  hence its spec.
  """
  fsdp = mesh.shape["fsdp"]
  return jax.tree_util.tree_map_with_path(
      lambda key_path, leaf: NamedSharding(
          mesh, param_spec(leaf_path(key_path), leaf.shape, fsdp, min_size)), abstract)
