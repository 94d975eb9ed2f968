"""The record of a `make` step: how a folder of images or answers was made; other settings are refused."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from unilip_jax.common import json_file, paths
from unilip_jax.scores import provenance

FILE = "make.json"
# What decides the content of images and answers. A rerun must have the same; other fields may differ.
FIXED = ("benchmark", "revision", "items_sha256", "weights_fingerprint", "protocol", "steps", "guidance",
         "solver", "seed", "noise", "size", "images_per_item", "precision", "max_new_tokens", "max_tiles",
         "keep_size", "int8")


def read(path: epath.PathLike) -> dict[str, Any] | None:
  """Reads the record of a folder, or of the folder of a file; None if others made its content."""
  place = paths.path(path)
  file = (place if place.is_dir() else place.parent) / FILE
  return json_file.read(file, remedy="make its folder again") if file.exists() else None


def open_folder(path: epath.PathLike, settings: Mapping[str, Any]) -> epath.Path:
  """Creates a folder with its record, or checks the record of an existing one.

  Args:
    path: of the folder, local or gs://.
    settings: JSON-ready; those of FIXED must be the same in an existing record.

  Raises:
    ValueError: naming each field that differs, or for a folder with files but without a record.
  """
  folder = paths.path(path)
  stored = read(folder) if folder.is_dir() else None
  if stored is None:
    if folder.is_dir() and any(True for p in folder.iterdir() if not p.name.startswith(FILE)):
      raise ValueError(f"{folder} is not empty and has no {FILE}: others made its files; choose another "
                       "folder")
    folder.mkdir(parents=True, exist_ok=True)
    json_file.write(folder / FILE, {"format": 1, **settings, "started": provenance.now(),
                                    "versions": provenance.versions()})
    return folder
  wrong = [f"  {name}: {stored.get(name)!r} there, {settings.get(name)!r} now"
           for name in FIXED if stored.get(name) != settings.get(name)]
  if wrong:
    raise ValueError(f"{folder} was made with other settings; choose another folder, or the same "
                     "settings:\n" + "\n".join(wrong))
  return folder
