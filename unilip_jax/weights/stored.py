"""Weights on disk or in memory that are read on request, in parts and straight onto the devices."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import functools
import math
from typing import Any

from etils import epath
import jax
import numpy as np

from unilip_jax.common import errors, tree
from unilip_jax.weights import orbax_io

_READ_BYTES = 2**27


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
  """Weights that are read when they are asked for, and only what is asked for.

  Attributes:
    origin: where they are, for messages.
    model: model.json.
    places: (path before theirs or "", orbax folder), of which no two hold the same path.
    arrays: {path: array} of what is in memory already.
  """

  origin: str
  model: Mapping[str, Any]
  places: tuple[tuple[str, epath.Path], ...] = ()
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def _held(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """{orbax folder: {path in it: what is saved}}."""
    return {str(folder): {
        path: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
        for path, leaf in tree.flatten(orbax_io.saved_tree(folder)).items()}
        for _, folder in self.places}

  @functools.cached_property
  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape and dtype} of everything; reads no array."""
    found = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in self.arrays.items()}
    for prefix, folder in self.places:
      found |= {prefix + path: leaf for path, leaf in self._held[str(folder)].items()}
    return found

  @property
  def modules(self) -> set[str]:
    """Names of the modules that are held."""
    return {path.split("/")[0] for path in self.shapes}

  def load(
      self, names: Iterable[str] | None = None, *, dtype: str | None = "float32") -> dict[str, Any]:
    """Reads modules as NumPy arrays, complete on every host.

    Args:
      names: of the modules; None reads all.
      dtype: of the result; None keeps that of the saved arrays.

    Returns:
      {module: nested dict of arrays}.

    Raises:
      ValueError: if one of `names` is absent.
    """
    wanted = self.modules if names is None else set(names)
    if absent := sorted(wanted - self.modules):
      raise ValueError(f"{self.origin} lacks {absent}; it holds {sorted(self.modules)}")
    read = {path: x for path, x in self.arrays.items() if path.split("/")[0] in wanted}
    for prefix, folder in self.places:
      if prefix and prefix.removesuffix("/") not in wanted:
        continue
      held = orbax_io.read_tree(folder, None if prefix else wanted)
      read |= {prefix + path: x for path, x in tree.flatten(held).items()}
    return tree.unflatten(
        {path: x if dtype is None else np.asarray(x, dtype) for path, x in read.items()})

  def restore(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads arrays onto their shardings, each host only its own shards.

    Args:
      wanted: {path: struct of the saved shape, with the dtype and the sharding that are wanted}.

    Raises:
      ValueError: for a path that is not held or of another shape.
    """
    errors.check_shapes(
        {path: leaf.shape for path, leaf in self.shapes.items() if path in wanted},
        {path: tuple(leaf.shape) for path, leaf in wanted.items()}, self.origin)
    found = {path: _put(self.arrays[path], leaf)
             for path, leaf in wanted.items() if path in self.arrays}
    for prefix, folder in self.places:
      part = {path: wanted[prefix + path] for path in self._held[str(folder)]
              if prefix + path in wanted}
      for group in _groups(part):
        found |= {prefix + path: x for path, x in orbax_io.restore_leaves(folder, group).items()}
    return found


def _groups(
    wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
  """Arrays of about _READ_BYTES together: what is read at once is in memory twice for a moment."""
  group: dict[str, jax.ShapeDtypeStruct] = {}
  size = 0
  for path, leaf in wanted.items():
    new = math.prod(leaf.shape) * leaf.dtype.itemsize
    if group and size + new > _READ_BYTES:
      yield group
      group, size = {}, 0
    group[path] = leaf
    size += new
  if group:
    yield group


def _put(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: np.asarray(array[index], leaf.dtype))
