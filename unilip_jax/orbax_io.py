"""Trees of arrays on disk, one orbax folder each: written whole, read without knowing the structure.

Used for frozen weights, imported weights and for looking into checkpoints. Local and gs:// paths.
"""

from collections.abc import Iterable
import os
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp


def absolute(path: epath.PathLike) -> epath.Path:
  """Orbax refuses relative paths; `~` is expanded too."""
  path = epath.Path(path).expanduser()
  return path if "://" in os.fspath(path) else path.resolve()


def write_tree(folder: epath.PathLike, tree: Any, *, overwrite: bool = False) -> None:
  """Writes nested dicts of arrays; the folder appears only when it is complete.

  Raises:
    ValueError: if the folder exists and `overwrite` is False.
  """
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(absolute(folder), tree, force=overwrite)


def saved_tree(folder: epath.PathLike) -> Any:
  """What `folder` holds: nested dicts whose leaves have `.shape` and `.dtype`; reads no array."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.metadata(absolute(folder)).item_metadata.tree


def saved_shapes(folder: epath.PathLike) -> dict[str, tuple[int, ...]]:
  """{path: shape} of what `folder` holds."""
  return leaf_shapes(saved_tree(folder))


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """{path: shape} of any pytree of arrays, lists and named tuples included."""
  return {
      jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def read_tree(folder: epath.PathLike, names: Iterable[str] | None = None) -> Any:
  """Reads nested dicts of numpy arrays, every host the whole of each array.

  Args:
    folder: written by `write_tree` or a checkpoint's item.
    names: top-level keys to read; None reads all.
  """
  saved = saved_tree(folder)
  if names is not None:
    names = set(names)
    saved = {name: subtree for name, subtree in saved.items() if name in names}
    if not saved:
      return {}
  restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(absolute(folder), args=ocp.args.PyTreeRestore(
        item=saved, restore_args=restore_args, partial_restore=names is not None))


def restore_tree(folder: epath.PathLike, abstract: Any) -> Any:
  """Reads onto the shardings of `abstract` (ShapeDtypeStructs), each host only its own shards."""
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(absolute(folder), abstract)
