"""Parameter trees by path: flatten, split by predicate, merge, and ranks without the scan axis.

A path is the keys of a leaf joined by "/", for example "vision_tower/layers/attn/qkv/kernel".
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax

Tree = Any
_SCANNED = "layers"  # key of the layers that nn.scan stacks (models/__init__.py)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Flattens nested dicts to {path: leaf}, in tree order."""
  return flax.traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverts `flatten`."""
  return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
  """Maps like jax.tree.map, with the leaf's path as first argument of `fn`; nested dicts only."""
  flats = [flatten(t) for t in rest]
  return unflatten({p: fn(p, leaf, *(f[p] for f in flats)) for p, leaf in flatten(tree).items()})


def split(tree: Tree, keep: Callable[[str], bool]) -> tuple[Tree, Tree]:
  """Splits a tree into (leaves whose path `keep` accepts, the other leaves)."""
  flat = flatten(tree)
  return (unflatten({p: v for p, v in flat.items() if keep(p)}),
          unflatten({p: v for p, v in flat.items() if not keep(p)}))


def merge(*trees: Tree) -> Tree:
  """Merges trees with disjoint paths, e.g. those that `split` returns.

  Raises:
    ValueError: if a path is in two of the trees.
  """
  merged: dict[str, Any] = {}
  for tree in trees:
    flat = flatten(tree)
    repeated = merged.keys() & flat.keys()
    if repeated:
      raise ValueError(f"repeated paths: {sorted(repeated)[:8]}")
    merged.update(flat)
  return unflatten(merged)


def is_scanned(path: str) -> bool:
  """Tells whether the leaf at `path` has a leading layer axis."""
  return _SCANNED in path.split("/")


def unstacked_rank(path: str, leaf: Any) -> int:
  """Returns the leaf's rank without the scan axis, which rules about rank use."""
  return leaf.ndim - is_scanned(path)


def count(tree: Tree) -> int:
  """Counts parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
