"""Folders of imported weights, written whole and read in parts.

A folder holds

  model.json        {"format": 2, "modules": {name: dimensions}, "source": …, "dtypes": {name: dtype}};
                    "generate": {factor, condition} where a whole UniLIP was imported
  params/<module>/  one orbax tree of arrays each, in the dtype of `dtypes`
  tokenizer.json    of the LLM, where there is one (data/text.py)

It is written module by module under another name and renamed when it is whole; model.json is written
last, so that a folder that has one is complete. Local and gs:// paths.
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath

from unilip_jax.common import atomic_io
from unilip_jax.weights import download_hints, orbax_io
from unilip_jax.weights import stored as stored_lib

FORMAT = 2
TOKENIZER_FILE = "tokenizer.json"
MODEL = "model.json"
_PARAMS = "params"


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
    self._folder = atomic_io.Folder(folder, overwrite=overwrite, replaceable=lambda path: (
        (path / MODEL).exists() and not (path / "checkpoints").exists()))  # a run's workdir never
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
    (self._folder.path / MODEL).write_text(json.dumps(model, indent=2))
    self._folder.finish()


def open_folder(folder: epath.PathLike) -> stored_lib.Stored:
  """A folder that a `Writer` wrote, to be read in parts; errors as of `read_model`."""
  folder = epath.Path(folder).expanduser()
  model = read_model(folder)
  return stored_lib.Stored(str(folder), model,
                           tuple((f"{name}/", folder / _PARAMS / name) for name in model["modules"]))


def read_model(folder: epath.PathLike) -> dict[str, Any]:
  """model.json of a folder.

  Raises:
    FileNotFoundError: if there is none, saying what to download.
    ValueError: if it is damaged or of another format.
  """
  path = epath.Path(folder).expanduser() / MODEL
  if not path.exists():
    raise FileNotFoundError(download_hints.missing_weights_message(str(folder)))
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
