"""The tokenizer and system message that belong to weights."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath

from unilip_jax.configs import base, renamed
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import orbax_io, sources


def language_of(path: str, model: Mapping[str, Any]) -> tuple[str, str] | None:
  """Finds what prompts are tokenized with.

  Args:
    path: of the weights, as sources.open_weights takes it.
    model: their description (Stored.model).

  Returns:
    (tokenizer as data/text.py takes it, system message): of the folder, or of the config of the run that
    the weights are from. None if there is neither.
  """
  if "origin" in model:
    return _of_config(model["origin"]["config"])
  folder = _workdir(path)
  if (folder / folder_lib.TOKENIZER_FILE).exists():
    return str(folder / folder_lib.TOKENIZER_FILE), base.SYSTEM
  if (folder / "config.json").exists():
    return _of_config(json.loads((folder / "config.json").read_text()))
  return None


def _workdir(path: str) -> epath.Path:
  folder = orbax_io.absolute(path)
  return folder.parent.parent if folder.parent.name == sources.STEPS else folder


def _of_config(saved: Mapping[str, Any]) -> tuple[str, str]:
  config = renamed.translate(saved)
  return config["text"]["tokenizer"], config["text"]["system"]
