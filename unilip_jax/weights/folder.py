"""The format of imported weights: a folder that is written atomically and read in parts.

A folder holds

  model.json        {"format": 2, "modules": {name: dimensions}, "source": …, "dtypes": {name: dtype}},
                    "files": {name: [bytes, CRC32C]} of the other files, and a checksum of its own;
                    and "generate": {factor, condition} if a complete UniLIP was imported
  params/<module>/  one orbax tree of arrays per module, in the dtype of `dtypes`, with a checksums.json
  tokenizer.json    of the LLM, if there is one (data/text.py)

Modules are written one by one to a temporary folder, which is renamed when it is complete. model.json is
written last: a folder with a model.json is complete. Local and gs:// paths.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from unilip_jax.common import atomic_io, json_file, paths
from unilip_jax.weights import checksums, download_hints, orbax_io
from unilip_jax.weights import stored as stored_lib

FORMAT = 2
TOKENIZER_FILE = "tokenizer.json"
MODEL = "model.json"
_PARAMS = "params"
_REMEDY = "import the weights again"


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
    self._files: list[str] = []

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
    atomic_io.write(self._folder.path / name, text.encode())
    self._files.append(name)

  def finish(self, extra: Mapping[str, Any]) -> None:
    """Writes model.json with `extra` entries, and renames the folder to its final name."""
    folder = self._folder.path
    files = {name: checksums.measure(folder / name) for name in self._files}
    json_file.write(folder / MODEL, {"format": FORMAT, "modules": self._dims, "files": files, **extra},
                    checksum=True)
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
  model = json_file.read(path, remedy=_REMEDY, optional={
      "dtypes": dict, "source": list, "generate": dict, "files": dict})
  if model.get("format") != FORMAT:
    raise ValueError(f"{path}: format {model.get('format')!r}; this version reads {FORMAT}: {_REMEDY}")
  dims = model.get("modules")
  if not isinstance(dims, dict) or not all(
      isinstance(d, dict) and "/" not in name for name, d in dims.items()):
    raise ValueError(f"{path} is damaged: `modules` is not a table of dimensions; {_REMEDY}")
  for name, expected in model.get("files", {}).items():
    file = path.parent / name
    if not file.is_file() or checksums.measure(file) != expected:
      raise checksums.damaged([f"  {file}: {'its content has changed' if file.exists() else 'absent'}"],
                              _REMEDY)
  absent = [name for name in dims if not (path.parent / _PARAMS / name).exists()]
  if absent:
    raise ValueError(f"{path.parent} lacks the arrays of {', '.join(absent)}; {_REMEDY}")
  return model
