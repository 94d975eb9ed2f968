"""Trees of arrays on disk, one orbax folder each: written whole, read without knowing the structure.

Used for frozen weights, imported weights and for looking into checkpoints. Local and gs:// paths.
"""

from collections.abc import Iterable, Mapping
import gc
import logging as stdlib_logging
import os
from typing import Any

from absl import logging
from etils import epath
from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

_CHUNK_BYTES = 2**23
_MIN_SLICE_BYTES = 2**20
_WORTH_COLLECTING = 2**24


def _write_small_arrays_whole() -> None:
  """Has one replica write a replicated array whose slices would be small, for the whole process.

  By default every replica writes a slice, for which orbax compiles a program per shape and device:
  hundreds in a run's first save on a few devices.
  """
  log = logging.get_absl_logger()
  log.disabled = True  # orbax warns of what is meant
  ocp.type_handlers.register_type_handler(
      jax.Array, override=True, handler=ocp.type_handlers.ArrayHandler(
          min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES))
  log.disabled = False


def _hide_progress_notes() -> None:
  """Keeps orbax's many progress notes out of the log; its warnings stay."""
  def shown(record: stdlib_logging.LogRecord) -> bool:
    return record.levelno >= stdlib_logging.WARNING or "/orbax/" not in record.pathname

  logging.get_absl_handler().addFilter(shown)


_write_small_arrays_whole()
_hide_progress_notes()


def absolute(path: epath.PathLike) -> epath.Path:
  """Orbax refuses relative paths; `~` is expanded too."""
  path = epath.Path(path).expanduser()
  return path if "://" in os.fspath(path) else path.resolve()


def write_tree(folder: epath.PathLike, tree: Any, *, overwrite: bool = False) -> None:
  """Writes nested dicts of arrays; the folder appears only when it is complete.

  Arrays are cut into pieces of at most 8 MiB, so that a host that restores a share of an array reads
  about that share, and the buffers of reading are small.

  Raises:
    ValueError: if the folder exists and `overwrite` is False.
  """
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(absolute(folder), tree, force=overwrite, save_args=jax.tree.map(
        lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree))


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


def restore_leaves(
    folder: epath.PathLike, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """Reads some arrays of nested dicts onto their shardings, each host only its own shards.

  Args:
    folder: written by `write_tree` or a checkpoint's item.
    wanted: {path: struct with the saved shape, any float dtype, and a sharding}.

  Returns:
    {path: array}; of the dtypes that were asked for.
  """
  item = traverse_util.unflatten_dict(dict(wanted), sep="/")
  with ocp.PyTreeCheckpointer() as checkpointer:
    restored = checkpointer.restore(absolute(folder), args=ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True))
  # Orbax leaves the host's copies of what was read in cycles of references. To look for them costs up to a
  # second in a process with many objects.
  if sum(leaf.size * leaf.dtype.itemsize for leaf in wanted.values()) >= _WORTH_COLLECTING:
    gc.collect()
  return traverse_util.flatten_dict(restored, sep="/")
