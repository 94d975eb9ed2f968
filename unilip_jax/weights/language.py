"""Finds the tokenizer and the system message that belong to weights."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from unilip_jax.common import json_file
from unilip_jax.configs import base, renamed
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import orbax_io, sources


def language_of(path: str, model: Mapping[str, Any]) -> tuple[str, str] | None:
  """Finds the tokenizer and the system message of weights.

  Args:
    path: of the weights, as for sources.open_weights.
    model: model.json of the weights (Stored.model).

  Returns:
    (tokenizer as for data/text.py, system message), from the folder or from the config of the run that
    trained the weights. None if there is neither.
  """
  if "origin" in model:
    return _of_config(model["origin"]["config"])
  folder = _workdir(path)
  if (folder / folder_lib.TOKENIZER_FILE).exists():
    return str(folder / folder_lib.TOKENIZER_FILE), base.SYSTEM
  if (folder / "config.json").exists():
    return _of_config(json_file.read(
        folder / "config.json", remedy="start the run's training command again: it writes the file",
        kinds={"text": dict}))
  return None


def _workdir(path: str) -> epath.Path:
  folder = orbax_io.absolute(path)
  return folder.parent.parent if folder.parent.name == sources.STEPS else folder


def _of_config(saved: Mapping[str, Any]) -> tuple[str, str]:
  config = renamed.translate(saved)
  return config["text"]["tokenizer"], config["text"]["system"]
