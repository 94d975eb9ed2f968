"""The format of imported weights: a folder that is written atomically and read in parts.

A folder holds

  model.json        {"format": 2, "modules": {name: dimensions}, "source": …, "dtypes": {name: dtype}};
                    and "generate": {factor, condition} if a complete UniLIP was imported
  params/<module>/  one orbax tree of arrays per module, in the dtype of `dtypes`
  tokenizer.json    of the LLM, if there is one (data/text.py)

Modules are written one by one to a temporary folder, which is renamed when it is complete. model.json is
written last: a folder with a model.json is complete. Local and gs:// paths.
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath

from unilip_jax.common import atomic_io, paths
from unilip_jax.weights import download_hints, orbax_io
from unilip_jax.weights import stored as stored_lib

FORMAT = 2
TOKENIZER_FILE = "tokenizer.json"
MODEL = "model.json"
_PARAMS = "params"


class Writer:
  """Writes a folder of weights module by module; after a failure no part of it remains.

  with Writer(folder) as writer:
    writer.add("mlp1", arrays, dims)
    writer.finish({"source": …})
  """

  def __init__(self, folder: epath.PathLike, *, overwrite: bool = False):
    """Checks the path; writes nothing yet.

    Args:
      folder: local or gs:// path.
      overwrite: replace an existing folder of weights.

    Raises:
      ValueError: if the folder is not empty and `overwrite` is False, or it is no folder of weights.
    """
    self._folder = atomic_io.Folder(folder, overwrite=overwrite, replaceable=lambda path: (
        (path / MODEL).exists() and not (path / "checkpoints").exists()))  # never a run's workdir
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
    """Writes a file next to the weights."""
    (self._folder.path / name).write_text(text)

  def finish(self, extra: Mapping[str, Any]) -> None:
    """Writes model.json with `extra` entries, and renames the folder to its final name."""
    model = {"format": FORMAT, "modules": self._dims, **extra}
    (self._folder.path / MODEL).write_text(json.dumps(model, indent=2))
    self._folder.finish()


def open_folder(folder: epath.PathLike) -> stored_lib.Stored:
  """Opens a folder that a `Writer` wrote; reads no array; errors as of `read_model`."""
  folder = paths.path(folder)
  model = read_model(folder)
  return stored_lib.Stored(str(folder), model,
                           tuple((f"{name}/", folder / _PARAMS / name) for name in model["modules"]))


def read_model(folder: epath.PathLike) -> dict[str, Any]:
  """Reads and checks the model.json of a folder.

  Raises:
    FileNotFoundError: if there is none; the message explains what to download.
    ValueError: if it is damaged or of another format.
  """
  path = paths.path(folder) / MODEL
  if not path.exists():
    raise FileNotFoundError(download_hints.missing_weights_message(str(folder)))
  try:
    model = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}; import the weights again") from error
  if not isinstance(model, dict) or model.get("format") != FORMAT:
    version = model.get("format") if isinstance(model, dict) else type(model).__name__
    raise ValueError(f"{path}: format {version!r}; this version reads {FORMAT}: import the weights "
                     "again")
  dims = model.get("modules")
  if not isinstance(dims, dict) or not all(
      isinstance(d, dict) and "/" not in name for name, d in dims.items()):
    raise ValueError(f"{path} is damaged: `modules` is not a table of dimensions; import the weights again")
  for entry, kind in (("dtypes", dict), ("source", list), ("generate", dict)):
    if not isinstance(model.get(entry, kind()), kind):
      raise ValueError(f"{path} is damaged: `{entry}` is {model[entry]!r}; import the weights again")
  absent = [name for name in dims if not (path.parent / _PARAMS / name).exists()]
  if absent:
    raise ValueError(f"{path.parent} lacks the arrays of {', '.join(absent)}; import the weights again")
  return model
