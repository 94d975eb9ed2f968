"""Folders of imported weights, written whole and read in parts.

A folder holds

  model.json        {"format": 2, "modules": {name: dimensions}, "source": …, "dtypes": {name: dtype}};
                    "generate": {factor, condition} where a whole UniLIP was imported
  params/<module>/  one orbax tree of arrays each, in the dtype of `dtypes`
  tokenizer.json    of the LLM, where there is one (data/text.py)

It is written module by module under another name and renamed when it is whole; model.json is written
last, so that a folder that has one is complete. Local and gs:// paths.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import functools
import json
import math
from typing import Any

from etils import epath
import jax
import numpy as np

from unilip_jax import downloads, orbax_io, presets, tree, whole

FORMAT = 2
TOKENIZER_FILE = "tokenizer.json"
_MODEL = "model.json"
_PARAMS = "params"
_READ_BYTES = 2**27


class Writer:
  """A folder of weights in the making, one module at a time; after a failure nothing is left of it.

  with Writer(folder) as writer:
    writer.add("mlp1", arrays, dims)
    writer.finish({"source": …})
  """

  def __init__(self, folder: epath.PathLike, *, overwrite: bool = False):
    """Looks at the place; nothing is written yet.

    Args:
      folder: local or gs:// path.
      overwrite: replace a folder of weights that is already there.

    Raises:
      ValueError: if the folder is not empty and `overwrite` is False, or it is no folder of weights.
    """
    self._folder = whole.Folder(folder, overwrite=overwrite, replaceable=lambda path: (
        (path / _MODEL).exists() and not (path / "checkpoints").exists()))  # a run's workdir never
    self._dims: dict[str, Any] = {}

  def __enter__(self) -> "Writer":
    self._folder.__enter__()
    return self

  def __exit__(self, kind, error, traceback) -> None:
    self._folder.__exit__(kind, error, traceback)

  def add(self, name: str, arrays: Mapping[str, Any], dims: Any) -> None:
    """Writes one module.

    Args:
      name: of the module.
      arrays: nested dict; written in their own dtypes.
      dims: JSON-ready dimensions.
    """
    orbax_io.write_tree(self._folder.path / _PARAMS / name, dict(arrays))
    self._dims[name] = dims

  def write_text(self, name: str, text: str) -> None:
    """Writes a file beside the weights."""
    (self._folder.path / name).write_text(text)

  def finish(self, extra: Mapping[str, Any]) -> None:
    """Writes model.json, with `extra` entries, and puts the folder in its place."""
    model = {"format": FORMAT, "modules": self._dims, **extra}
    (self._folder.path / _MODEL).write_text(json.dumps(model, indent=2))
    self._folder.finish()


def save_weights(
    folder: epath.PathLike,
    modules: Mapping[str, Any],
    dims: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
  """Writes a folder of weights that are all in memory; after a failure there is none, or the former.

  Args:
    folder: local or gs:// path.
    modules: {name: nested dict of arrays}.
    dims: {name: JSON-ready dimensions}, the same names.
    extra: more entries of model.json.
    overwrite: replace a folder that is already there.

  Raises:
    ValueError: if names and dimensions differ, or the folder exists and `overwrite` is False.
  """
  if set(modules) != set(dims):
    raise ValueError(f"modules {sorted(modules)} and their dimensions {sorted(dims)} differ")
  with Writer(folder, overwrite=overwrite) as writer:
    for name, arrays in modules.items():
      writer.add(name, arrays, dims[name])
    writer.finish(extra or {})


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

  def restore(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads arrays onto their shardings, each host only its own shards.

    Args:
      wanted: {path: struct of the saved shape, with the dtype and the sharding that are wanted}.

    Raises:
      ValueError: for a path that is not held or of another shape.
    """
    wrong = [f"  {path}: weights {self.shapes[path].shape if path in self.shapes else 'absent'}, "
             f"wanted {leaf.shape}" for path, leaf in wanted.items()
             if path not in self.shapes or self.shapes[path].shape != leaf.shape]
    if wrong:
      raise ValueError(f"{self.origin}:\n" + "\n".join(wrong[:20]))
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


def open_weights(folder: epath.PathLike) -> Stored:
  """A folder that a `Writer` wrote, to be read in parts; errors as of `read_model`."""
  folder = epath.Path(folder).expanduser()
  model = read_model(folder)
  return Stored(str(folder), model,
                tuple((f"{name}/", folder / _PARAMS / name) for name in model["modules"]))


def load_weights(
    folder: epath.PathLike, names: Iterable[str] | None = None, *, dtype: str | None = "float32"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a folder that a `Writer` wrote, whole arrays on every host.

  Args:
    folder: local or gs:// path.
    names: modules to read; None reads all.
    dtype: of the result; None keeps that of the folder.

  Returns:
    ({name: nested dict of numpy arrays}, model.json).

  Raises:
    FileNotFoundError: if there is no such folder, saying what to download.
    ValueError: if the folder is of another format or lacks one of `names`.
  """
  folder = epath.Path(folder).expanduser()
  model = read_model(folder)
  names = list(model["modules"] if names is None else names)
  absent = sorted(set(names) - set(model["modules"]))
  if absent:
    raise ValueError(f"{folder} lacks {absent}; it holds {sorted(model['modules'])}")
  loaded = {}
  for name in names:
    arrays = orbax_io.read_tree(folder / _PARAMS / name)
    loaded[name] = arrays if dtype is None else jax.tree.map(
        lambda x: np.asarray(x, dtype), arrays)
  return loaded, model


def read_model(folder: epath.PathLike) -> dict[str, Any]:
  """model.json of a folder.

  Raises:
    FileNotFoundError: if there is none, saying what to download.
    ValueError: if it is damaged or of another format.
  """
  path = epath.Path(folder).expanduser() / _MODEL
  if not path.exists():
    raise FileNotFoundError(downloads.missing_weights_message(str(folder)))
  try:
    model = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}; import the weights again") from error
  if not isinstance(model, dict) or model.get("format") != FORMAT:
    found = model.get("format") if isinstance(model, dict) else type(model).__name__
    raise ValueError(f"{path}: format {found!r}; this version reads {FORMAT}: import the weights "
                     "again")
  dims = model.get("modules")
  if not isinstance(dims, dict) or not all(
      isinstance(d, dict) and "/" not in name for name, d in dims.items()):
    raise ValueError(f"{path} is damaged: `modules` is no table of dimensions; import the weights again")
  for entry, kind in (("dtypes", dict), ("source", list), ("generate", dict)):
    if not isinstance(model.get(entry, kind()), kind):
      raise ValueError(f"{path} is damaged: `{entry}` is {model[entry]!r}; import the weights again")
  absent = [name for name in dims if not (path.parent / _PARAMS / name).exists()]
  if absent:
    raise ValueError(f"{path.parent} lacks the arrays of {', '.join(absent)}; import the weights again")
  return model


def module_dims(model: Mapping[str, Any]) -> dict[str, Any]:
  """{module: JSON-ready dimensions} of a model.json, where a run's says `tokenizer` for four."""
  dims = dict(model["modules"])
  if "tokenizer" in dims:
    tokenizer = presets.from_json(presets.TokenizerDims, dims.pop("tokenizer"))
    dims.update(split_tokenizer(tokenizer))
  return dims


def split_tokenizer(dims: presets.TokenizerDims) -> dict[str, Any]:
  """The tokenizer's dimensions by module, JSON-ready."""
  return {
      "vision_tower": presets.to_json(dims.vit),
      "mlp1": {"in_width": 4 * dims.vit.width, "width": dims.llm_width},
      "latent_head": {
          "depth": dims.latent_depth, "width": dims.llm_width, "channels": dims.latent_channels},
      "decoder": presets.to_json(dims.decoder)}


def tokenizer_dims(model: Mapping[str, Any]) -> presets.TokenizerDims:
  """The tokenizer that a model.json describes.

  Raises:
    ValueError: if it lacks one of the four modules.
  """
  dims = module_dims(model)
  absent = [name for name in ("vision_tower", "mlp1", "latent_head", "decoder") if name not in dims]
  if absent:
    raise ValueError(f"these weights are no whole tokenizer: they lack {', '.join(absent)} and "
                     f"hold {', '.join(sorted(dims))}")
  return presets.TokenizerDims(
      vit=presets.from_json(presets.VitDims, dims["vision_tower"]),
      llm_width=dims["mlp1"]["width"],
      latent_depth=dims["latent_head"]["depth"],
      decoder=presets.from_json(presets.DcaeDims, dims["decoder"]))


def vision_dims(model: Mapping[str, Any]) -> presets.TokenizerDims:
  """CLIP tower and mlp1 of a model.json that has no more of the tokenizer; the decoder is of no stage."""
  dims = module_dims(model)
  nothing = presets.DcaeDims(0, (), (), (), (), 0, (), (), "interpolate")
  return presets.TokenizerDims(
      vit=presets.from_json(presets.VitDims, dims["vision_tower"]),
      llm_width=dims["mlp1"]["width"], latent_depth=0, decoder=nothing)


def unilip_dims(model: Mapping[str, Any]) -> presets.UnilipDims | None:
  """The whole model that a model.json describes; None where it describes a part alone."""
  dims = model["modules"]
  if not {"llm", "connector", "dit"} <= set(dims) or "generate" not in model:
    return None
  return presets.UnilipDims(
      tokenizer=tokenizer_dims(model),
      llm=presets.from_json(presets.LlmDims, dims["llm"]),
      connector=presets.from_json(presets.ConnectorDims, dims["connector"]),
      dit=presets.from_json(presets.DitDims, dims["dit"]),
      factor=model["generate"]["factor"])
