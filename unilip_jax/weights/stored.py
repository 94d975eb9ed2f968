"""Weights on disk or in memory, read on request: in parts, and from disk onto the devices."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import math
from typing import Any

from etils import epath
import jax
import numpy as np

from unilip_jax.common import errors, tree
from unilip_jax.weights import checksums, finite, orbax_io

_READ_BYTES = 2**27  # arrays restored at once, which the host holds next to the devices


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
  """Describes stored weights, and reads the requested ones.

  Attributes:
    origin: path for messages.
    model: model.json.
    places: (prefix of the paths in it or "", orbax folder); no two folders hold the same path.
    arrays: {path: array} of weights in memory.
    remedies: {orbax folder: what to do if a file in it is damaged}, where importing again does not help.
  """

  origin: str
  model: Mapping[str, Any]
  places: tuple[tuple[str, epath.Path], ...] = ()
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  remedies: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def verify(self, modules: Iterable[str] | None = None, *, on_all: bool = False) -> None:
    """Verifies the checksums of the files that hold `modules` (None: all), each folder once.

    Args:
      modules: names; None verifies all.
      on_all: whether all processes call it and divide the work.

    Raises:
      checksums.DamagedError: naming each damaged file.
    """
    folders = [folder for prefix, folder in self.places
               if not prefix or modules is None or prefix.removesuffix("/") in modules]
    for folder in folders:
      if (folder, on_all) not in self._verified:
        checksums.verify(folder, self._remedy(folder), on_all=on_all)
        self._verified.add((folder, on_all))

  def _remedy(self, folder: epath.Path) -> str:
    return self.remedies.get(str(folder), "import the weights again")

  @functools.cached_property
  def _verified(self) -> set[tuple[epath.Path, bool]]:
    return set()

  @contextlib.contextmanager
  def _reading(self, folder: epath.Path) -> Iterator[None]:
    """Turns the errors of reading a folder into one that names its damaged files, if there are any."""
    try:
      yield
    except Exception as error:  # orbax' and TensorStore's many kinds
      checksums.verify(folder, self._remedy(folder))
      if isinstance(error, jax.errors.JaxRuntimeError | MemoryError):
        raise
      raise checksums.DamagedError(
          f"{folder} cannot be read: {str(error)[:300] or type(error).__name__}\n"
          f"{self._remedy(folder)}") from error

  @functools.cached_property
  def _shapes_by_folder(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Reads {orbax folder: {path in it: shape and dtype}}."""
    shapes = {}
    for _, folder in self.places:
      with self._reading(folder):
        shapes[str(folder)] = {
            path: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
            for path, leaf in tree.flatten(orbax_io.saved_tree(folder)).items()}
    return shapes

  @functools.cached_property
  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Reads {path: shape and dtype} of all weights; reads no array."""
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in self.arrays.items()}
    for prefix, folder in self.places:
      shapes |= {prefix + path: leaf for path, leaf in self._shapes_by_folder[str(folder)].items()}
    return shapes

  @property
  def modules(self) -> set[str]:
    """Names of the stored modules."""
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
      checksums.DamagedError: if files are damaged.
    """
    modules = self.modules if names is None else set(names)
    if absent := sorted(modules - self.modules):
      raise ValueError(f"{self.origin} lacks {absent}; it holds {sorted(self.modules)}")
    self.verify(modules)
    arrays = {path: x for path, x in self.arrays.items() if path.split("/")[0] in modules}
    for prefix, folder in self.places:
      if prefix and prefix.removesuffix("/") not in modules:
        continue
      with self._reading(folder):
        part = orbax_io.read_tree(folder, None if prefix else modules)
      arrays |= {prefix + path: x for path, x in tree.flatten(part).items()}
    return tree.unflatten(
        {path: x if dtype is None else np.asarray(x, dtype) for path, x in arrays.items()})

  def restore(self, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads arrays onto their shardings; each host reads only its own shards. All processes call it.

    Args:
      leaves: {path: struct with the saved shape, and the dtype and sharding of the result}.

    Raises:
      ValueError: for a path that is absent or of another shape, or for NaN or infinite values.
      checksums.DamagedError: if files are damaged.
    """
    self.verify({path.split("/")[0] for path in leaves}, on_all=True)
    errors.check_shapes(
        {path: leaf.shape for path, leaf in self.shapes.items() if path in leaves},
        {path: tuple(leaf.shape) for path, leaf in leaves.items()}, self.origin)
    restored = {path: _put(self.arrays[path], leaf)
                for path, leaf in leaves.items() if path in self.arrays}
    for prefix, folder in self.places:
      part = {path: leaves[prefix + path] for path in self._shapes_by_folder[str(folder)]
              if prefix + path in leaves}
      for group in _groups(part):
        with self._reading(folder):
          restored |= {prefix + path: x for path, x in orbax_io.restore_leaves(folder, group).items()}
    finite.check(restored, self.origin, "use other weights, an earlier checkpoint or the original ones")
    return restored


def _groups(
    leaves: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
  """Yields groups of about _READ_BYTES: arrays that are read together are in memory twice for a moment."""
  group: dict[str, jax.ShapeDtypeStruct] = {}
  size = 0
  for path, leaf in leaves.items():
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
