"""Which dimension of each parameter the `fsdp` axis splits: one table per network.

A table is rows of (regex over the parameter's path, spec). A spec has one entry per dimension, without
the leading axis of scanned layers, which is never split: "fsdp" or None. `()` keeps an array whole on
every device. The first row that matches an array and can be applied to it wins. The last row of every
table is AUTOMATIC: the largest dimension that divides, the last of equal ones. It is also what pads
least on a TPU, whose tiles are 8 × 128: the DiT's [1152, 3456] over 64 devices takes 4 % more than its
bytes split along 3456 and 14 % more along 1152. So a row above it needs a reason, which stands beside it.

Small arrays stay whole whatever their row says: gathering one costs a collective in every layer and
saves next to nothing. Small means below `min_size` elements in one layer.

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
    # [151 680, 896] by rows would be gathered whole for every lookup (259 MB in bfloat16). By columns
    # each device looks up its own for all tokens of its group, and an all-to-all brings a token's
    # columns together (`embedded` in sharding.ACTIVATIONS).
    "llm": (("embedding$", (None, FSDP)), AUTOMATIC),
    # Every example takes all of them, and they are 0.9 MB.
    "queries": (("queries$", ()), AUTOMATIC),
    # A depthwise kernel (0.4 MB at 3b) split by channels makes the partitioner split the maps by channels
    # too: it gathers the whole batch before and after every such convolution. The modulation's tables
    # are added to something of every example.
    "dit": (_DEPTHWISE, ("scale_shift$", ()), AUTOMATIC),
    "decoder": _DCAE,
    "encoder": _DCAE,
    "convnext": (_DEPTHWISE, AUTOMATIC),
}
_OTHERS: Sequence[Row] = (AUTOMATIC,)  # ViT, mlp1, latent head, connector, GAN and loss networks


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where one array lives.

  Attributes:
    spec: one entry per dimension up to the split one, the layer axis included; () if whole everywhere.
    why: why it is whole, or why a row above the automatic one was passed over; "" if neither.
  """

  spec: Spec
  why: str = ""


def family(path: str) -> str:
  """The network a path belongs to: its first key that has a table, "" for none.

  "teacher/vision_tower/…" and a moment of the optimizer fall under the network's own table.
  """
  return next((key for key in path.split("/") if key in TABLES), "")


def table_of(path: str) -> Sequence[Row]:
  """The rows that hold for a path."""
  return TABLES.get(family(path), _OTHERS)


def place(path: str, shape: Sequence[int], fsdp: int, min_size: int) -> Placement:
  """Applies the table.

  Args:
    path: "/"-joined; a path with a `layers` key has a leading layer axis.
    shape: of the array.
    fsdp: size of that mesh axis.
    min_size: arrays with fewer elements in one layer stay whole.

  Raises:
    ValueError: if a row's spec does not have the array's rank.
  """
  stacked = int(tree.is_scanned(path))
  layer = tuple(shape[stacked:])
  if fsdp == 1:
    return Placement((), "fsdp is 1")
  if math.prod(layer) < min_size:
    return Placement((), "small")
  passed = ""
  for pattern, spec in table_of(path):
    if not re.search(pattern, path):
      continue
    if spec == ():
      return Placement((), f"row {pattern!r}")
    if spec is None:
      dims = [d for d, size in enumerate(layer) if size % fsdp == 0]
      if dims:
        return _split(max(dims, key=lambda d: (layer[d], d)) + stacked, passed)
      continue
    if len(spec) != len(layer):
      raise ValueError(
          f"sharding_rules: row {pattern!r} has {len(spec)} dimensions, {path} has {len(layer)} "
          f"without the layer axis: {layer}")
    dim = spec.index(FSDP)
    if layer[dim] % fsdp == 0:
      return _split(dim + stacked, passed)
    passed = f"row {pattern!r}: {layer[dim]} does not divide"
  return Placement((), f"no dimension divides by {fsdp}")


def _split(dim: int, why: str) -> Placement:
  return Placement((*(None,) * dim, FSDP), why)


def check(paths: Iterable[str], tables: Mapping[str, Sequence[Row]] | None = None) -> None:
  """Checks that every row of every network in use decides about some array.

  Args:
    paths: of all parameters of a task, trained and frozen.
    tables: TABLES by default.

  Raises:
    ValueError: for a row that matches no parameter, or only such that a row above it has taken, and for
      a table that does not end with AUTOMATIC: a misspelt row would otherwise pass in silence.
  """
  paths = list(paths)
  for name, table in (TABLES if tables is None else tables).items():
    if not table or table[-1] != AUTOMATIC:
      raise ValueError(f"sharding_rules: the table of {name} must end with AUTOMATIC")
    mine = [path for path in paths if name in path.split("/")]
    if not mine:
      continue
    taken: dict[str, str] = {}
    for pattern, _ in table[:-1]:
      matches = [path for path in mine if re.search(pattern, path)]
      if not matches:
        raise ValueError(
            f"sharding_rules: row {pattern!r} of {name} matches no parameter; paths look like "
            f"{mine[0]!r}")
      if all(path in taken for path in matches):
        raise ValueError(
            f"sharding_rules: row {pattern!r} of {name} is dead: {matches[0]!r} is taken by row "
            f"{taken[matches[0]]!r} above it")
      for path in matches:
        taken.setdefault(path, pattern)


def param_spec(path: str, shape: tuple[int, ...], fsdp: int, min_size: int) -> P:
  """PartitionSpec of one parameter; see place."""
  return P(*place(path, shape, fsdp, min_size).spec)


def leaf_path(key_path: Any) -> str:
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
          mesh, param_spec(leaf_path(key_path), leaf.shape, fsdp, min_size)), abstract)
