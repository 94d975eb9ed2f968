"""The tokenizer and system message that belong to weights, and conversations as turns."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from unilip_jax import orbax_io
from unilip_jax.data import text as text_lib


def of_weights(path: str, model: Mapping[str, Any]) -> tuple[text_lib.Text, str]:
  """The tokenizer beside weights, or the one of the run they are from; and the system message.

  Args:
    path: of the weights, as `UniLIP.load` takes it.
    model: what describes them (weights.Stored.model).

  Raises:
    FileNotFoundError: if there is no tokenizer.
  """
  if "origin" in model:
    return _of_config(model["origin"]["config"])
  folder = orbax_io.absolute(path)
  if folder.parent.name == "checkpoints":
    folder = folder.parent.parent
  if (folder / "tokenizer.json").exists():
    return text_lib.Text(str(folder / "tokenizer.json")), text_lib.SYSTEM
  if (folder / "config.json").exists():
    return _of_config(json.loads((folder / "config.json").read_text()))
  raise FileNotFoundError(
      f"{folder} holds neither tokenizer.json nor a run's config.json; put the tokenizer.json of the "
      "language model there (docs/weights.md)")


def turns(strings: Sequence[str]) -> list[text_lib.Turn]:
  """[question, answer, …, question] as turns, the last without an answer.

  Raises:
    ValueError: for an even number of strings.
  """
  if len(strings) % 2 == 0:
    raise ValueError("a conversation is [question, answer, …, question]: an odd number of strings")
  return [text_lib.Turn(q, a) for q, a in zip(strings[::2], [*strings[1::2], ""])]


def _of_config(config: Mapping[str, Any]) -> tuple[text_lib.Text, str]:
  return text_lib.Text(config["text"]["tokenizer"]), config["text"]["system"]
