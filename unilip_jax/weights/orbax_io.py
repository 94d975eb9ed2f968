"""Trees of arrays on disk, one orbax folder each: written atomically, read without a known structure.

Used for frozen weights, imported weights and the items of checkpoints. Local and gs:// paths. Readers
verify the checksums (checksums.py) before they read arrays here.
"""

from collections.abc import Iterable, Mapping
import contextlib
import functools
import gc
import logging as stdlib_logging
from typing import Any

from absl import logging
from etils import epath
from flax import traverse_util
import jax
import numpy as np

from unilip_jax.common import paths
from unilip_jax.weights import checksums

_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax writes to <folder><this>, and renames it; not on object stores
_MANIFEST = "manifest.ocdbt"
_CHUNK_BYTES = 2**23
_MIN_SLICE_BYTES = 2**20
_MIN_COLLECTED_BYTES = 2**24
_RESTORE_GB = 2  # host copies at once while a tree is restored; orbax' default is 96


@functools.cache
def library() -> Any:
  """Returns orbax.checkpoint, imported and set up at the first call: other formats do without."""
  import orbax.checkpoint as ocp

  from unilip_jax.weights import tensorstore_leaks

  # Makes one replica write a small replicated array. By default every replica writes a slice, and orbax
  # compiles one program per shape and device for it: hundreds in a run's first save on a few devices.
  log = logging.get_absl_logger()
  log.disabled = True  # orbax warns about the override
  ocp.type_handlers.register_type_handler(
      jax.Array, override=True, handler=ocp.type_handlers.ArrayHandler(
          min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES))
  log.disabled = False
  # Keeps orbax' many progress messages out of the log; its warnings stay.
  logging.get_absl_handler().addFilter(
      lambda record: record.levelno >= stdlib_logging.WARNING or "/orbax/" not in record.pathname)
  tensorstore_leaks.apply()
  return ocp


def absolute(path: epath.PathLike) -> epath.Path:
  """Expands `~` and makes a local path absolute, since orbax refuses relative paths."""
  path = paths.path(path)
  return path if paths.is_remote(path) else path.resolve()


def write_tree(folder: epath.PathLike, tree: Any, *, overwrite: bool = False) -> None:
  """Writes nested dicts of arrays; the folder appears when it is complete.

  Arrays are written in chunks of at most 8 MiB. A host that restores a shard of an array reads about that
  shard, with small buffers.

  Raises:
    ValueError: if the folder exists and `overwrite` is False.
  """
  folder, ocp = absolute(folder), library()
  with ocp.StandardCheckpointer(async_options=ocp.AsyncOptions(
      post_finalization_callback=functools.partial(write_checksums, folder))) as checkpointer:
    checkpointer.save(folder, tree, force=overwrite, save_args=jax.tree.map(
        lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree))


def write_checksums(folder: epath.Path) -> None:
  """Writes the checksums of a folder that orbax has written and not yet renamed to its final name."""
  temporary = folder.with_name(folder.name + _TEMPORARY)
  checksums.write(temporary if temporary.exists() else folder)


def remove_unfinished(parent: epath.PathLike) -> None:
  """Removes the folders in `parent` that orbax was writing when its process was killed."""
  parent = absolute(parent)
  for path in parent.iterdir() if parent.exists() else ():
    if _TEMPORARY in path.name:
      logging.warning("removed %s, which a killed process left unfinished", path)
      path.rmtree()


def is_complete(folder: epath.PathLike) -> bool:
  """Tells whether a folder that orbax writes exists and is complete."""
  folder = absolute(folder)
  if not paths.is_remote(folder):
    return folder.exists()  # it gets its name when it is complete
  return (folder / "commit_success.txt").exists()


def saved_tree(folder: epath.PathLike) -> Any:
  """Reads the structure of `folder`: nested dicts whose leaves have `.shape` and `.dtype`; no array.

  Raises:
    FileNotFoundError: if there is no such folder.
    checksums.DamagedError: if its description is damaged.
  """
  folder = absolute(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is absent")
  # Without its manifest no array can be found. Orbax reads all at once, and what is still being read when
  # the first one fails prints errors from TensorStore's threads.
  if not (folder / _MANIFEST).exists():
    raise checksums.DamagedError(f"{folder} cannot be read: its {_MANIFEST} is absent")
  try:
    # The handler: a checkpointer also looks for notes of a complete step, which an item does not have.
    with contextlib.closing(library().PyTreeCheckpointHandler()) as handler:
      metadata = handler.metadata(folder)
  except Exception as error:  # orbax' and TensorStore's many kinds
    raise checksums.DamagedError(
        f"{folder} cannot be read: {str(error)[:300] or type(error).__name__}") from error
  if metadata is None or metadata.tree is None:
    raise checksums.DamagedError(f"{folder} cannot be read: its _METADATA is absent or damaged")
  return metadata.tree


def saved_shapes(folder: epath.PathLike) -> dict[str, tuple[int, ...]]:
  """Reads {path: shape} of the arrays in `folder`."""
  return leaf_shapes(saved_tree(folder))


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns {path: shape} of any pytree of arrays, including lists and named tuples."""
  return {
      jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def read_tree(folder: epath.PathLike, names: Iterable[str] | None = None) -> Any:
  """Reads nested dicts of NumPy arrays; every host reads every array completely.

  Args:
    folder: from `write_tree`, or a checkpoint's item.
    names: top-level keys to read; None reads all.
  """
  saved = saved_tree(folder)
  if names is not None:
    names = set(names)
    saved = {name: subtree for name, subtree in saved.items() if name in names}
    if not saved:
      return {}
  ocp = library()
  restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(absolute(folder), args=ocp.args.PyTreeRestore(
        item=saved, restore_args=restore_args, partial_restore=names is not None))


def restore_tree(folder: epath.PathLike, abstract: Any) -> Any:
  """Reads a tree onto its shardings; each host reads only its own shards.

  At most 2 GB of host copies exist at once, or one array if it is larger.

  Args:
    folder: from `write_tree`, or a checkpoint's item.
    abstract: pytree of ShapeDtypeStructs with the saved shapes, and shardings.
  """
  with library().StandardCheckpointer(restore_concurrent_gb=_concurrent_gb(abstract)) as checkpointer:
    restored = checkpointer.restore(absolute(folder), abstract)
  _free_host_copies(restored)
  return restored


def restore_leaves(
    folder: epath.PathLike, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """Reads some arrays of nested dicts onto their shardings; each host reads only its own shards.

  Args:
    folder: from `write_tree`, or a checkpoint's item.
    leaves: {path: struct with the saved shape, any float dtype, and a sharding}.

  Returns:
    {path: array of the struct's dtype}.
  """
  item = traverse_util.unflatten_dict(dict(leaves), sep="/")
  ocp = library()
  with ocp.PyTreeCheckpointer() as checkpointer:
    restored = checkpointer.restore(absolute(folder), args=ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True))
  _free_host_copies(restored)
  return traverse_util.flatten_dict(restored, sep="/")


def _concurrent_gb(abstract: Any) -> int:
  """Returns orbax' limit of host copies: orbax refuses a limit that the largest shard does not fit into."""
  largest = max((_nbytes(leaf) for leaf in jax.tree.leaves(abstract)), default=0)  # at most, unsharded
  return max(_RESTORE_GB, largest // 10**9 + 1)


def _nbytes(leaf: jax.ShapeDtypeStruct | jax.Array) -> int:
  """Bounds the bytes of a saved array, whose float dtype may be wider than the requested one."""
  return leaf.size * max(4, leaf.dtype.itemsize)


def _free_host_copies(restored: Any) -> None:
  """Frees the host copies of restored arrays, which orbax leaves in reference cycles.

  A collection takes up to a second in a process with many objects: small trees wait for the next one.
  """
  jax.block_until_ready(restored)  # a transfer in flight keeps its host copy
  if sum(_nbytes(leaf) for leaf in jax.tree.leaves(restored)) >= _MIN_COLLECTED_BYTES:
    gc.collect()
