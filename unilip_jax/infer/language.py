"""The tokenizer and system message that belong to weights, and conversations as turns."""

from collections.abc import Mapping, Sequence
from typing import Any

from unilip_jax.data import text as text_lib
from unilip_jax.weights import language


def of_weights(path: str, model: Mapping[str, Any]) -> tuple[text_lib.Text, str]:
  """The tokenizer of weights and their system message.

  Args:
    path: of the weights, as `UniLIP.load` takes it.
    model: their description (Stored.model).

  Raises:
    FileNotFoundError: if there is no tokenizer.
  """
  found = language.language_of(path, model)
  if found is None:
    raise FileNotFoundError(
        f"{path} holds neither tokenizer.json nor a run's config.json; put the tokenizer.json of the "
        "language model there (docs/weights.md)")
  tokenizer, system = found
  return text_lib.Text(tokenizer), system


def turns(strings: Sequence[str]) -> list[text_lib.Turn]:
  """[question, answer, …, question] as turns, the last without an answer.

  Raises:
    ValueError: for an even number of strings.
  """
  if len(strings) % 2 == 0:
    raise ValueError("a conversation is [question, answer, …, question]: an odd number of strings")
  return [text_lib.Turn(q, a) for q, a in zip(strings[::2], [*strings[1::2], ""])]
