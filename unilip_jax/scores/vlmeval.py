"""VLMEvalKit's rules for understanding: questions, option letters, yes or no (what the paper used).

The judge of VLMEvalKit, which reads answers that no rule understands, is left out: these rules are its
`exact_matching`, where such an answer counts 0 (with a judge it may end in a random option).
"""

import base64
from collections.abc import Callable, Mapping, Sequence
import re
import string
from typing import Any

from etils import epath

from unilip_jax.scores import base, records, tables

LETTERS = string.ascii_uppercase
MAX_NEW_TOKENS = 4096  # greedy decoding
UNANSWERED = "Z"

_REFUSALS = (
    "Sorry, I can't help with images of people yet.", "I can't process this file.",
    "I'm sorry, but without the image provided", "Cannot determine the answer")
_FAILED = "Failed to obtain answer via API"
_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)
_CHINESE = re.compile("[一-鿿]")
_LAST_WORDS = 4
_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # at most: the original passes a flag of this value where the count belongs
_SHORT_IMAGE = 64  # a shorter `image` is the index of the row that holds the image


class TableBenchmark(base.Benchmark):
  """A benchmark whose questions and predictions are VLMEvalKit's tables.

  Attributes:
    files: names of the questions' tables.
    md5: of the tables, as VLMEvalKit states them.
  """

  kind = "understanding"
  revision = "open-compass/VLMEvalKit e8e78f05 (2026-08-18), exact matching"
  files: tuple[str, ...] = ()
  md5: Mapping[str, str] = {}

  def read_items(self, source: str) -> list[base.Item]:
    """Reads VLMEvalKit's tsv: images are in base64, by the index of another row, or paths."""
    path = records.find_file(records.existing(source, f"questions of {self.name}"), self.files,
                             f"the questions of {self.name}, a table of VLMEvalKit")
    rows = tables.read(path, f"the questions of {self.name}")
    tables.require_columns(rows, ("index", "question", "answer"), str(path))
    by_index = {row["index"]: row for row in rows}
    items = []
    for number, row in enumerate(rows, 1):
      where = f"{path.name}, row {number}"
      if row["index"] is None or row["question"] is None:
        raise ValueError(f"{where}: malformed: no index or no question")
      images = _images(row, by_index, path.parent, where)
      record = {k: v for k, v in row.items() if k != "image"}
      items.append(base.Item(row["index"], self.prompt(record, len(images)), self.group(record),
                             images=images, record=record))
    records.check_unique(path, [item.id for item in items])
    return items

  def prompt(self, row: tables.Row, images: int) -> str:
    """Text of a question for InternVL-like models; `Text.chat` lays out its images in front of it."""
    del images
    return multiple_choice_prompt(row)

  def group(self, row: tables.Row) -> str:
    """Category of a question."""
    return row.get("l2-category") or row.get("category") or "all"

  def write_answers(
      self, path: str, items: Sequence[base.Item], answers: Mapping[str, str]) -> None:
    """Writes VLMEvalKit's prediction table: the questions' columns without images, and `prediction`."""
    tables.write(path, [{"index": item.id, **item.record, "prediction": answers[item.id]}
                        for item in items if item.id in answers])


def group_by(items: Sequence[base.Item], key: Callable[[base.Item], Any]) -> list[list[base.Item]]:
  """Groups items of equal keys, in the order of the first of each."""
  groups: dict[Any, list[base.Item]] = {}
  for item in items:
    groups.setdefault(key(item), []).append(item)
  return list(groups.values())


def multiple_choice_prompt(row: tables.Row) -> str:
  """Hint, question, one line an option, and how to answer."""
  text = row["question"]
  if row.get("hint") is not None:
    text = f"{row['hint']}\n{text}"
  options = choices(row)
  for letter, option in options.items():
    text += f"\n{letter}. {option}"
  if _CHINESE.search(text):
    return text + ("\n请直接回答选项字母。" if options else "\n请直接回答问题。")
  return text + ("\nAnswer with the option's letter from the given choices directly." if options
                 else "\nAnswer the question directly.")


def choices(row: tables.Row) -> dict[str, str]:
  """{letter: option} of a question."""
  return {letter: row[letter] for letter in LETTERS if row.get(letter) is not None}


def infer_option(answer: str, options: Mapping[str, str]) -> str | None:
  """Reads the option that an answer chooses; UNANSWERED for a refusal, None if unclear.

  In this order: exactly one option letter among the words, and that within the last four; "answer is X";
  exactly one option's text contained in a short answer. "A blue cube" is option A.
  """
  if _FAILED not in answer:
    if any(refusal in answer for refusal in _REFUSALS):
      return UNANSWERED
    words = answer.translate(_BLANKS).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
      return letters[0]
    if not letters and UNANSWERED in words:
      return UNANSWERED
    match = _ANSWER_IS.search(answer)
    if match and match[1].upper() in options:
      return match[1].upper()
  text = answer.lower()
  if len(text) > 2 * sum(len(option) for option in options.values()):
    return None
  contained = [letter for letter, option in options.items() if option.lower() in text]
  return contained[0] if len(contained) == 1 else None


def yes_or_no(answer: str) -> str:
  """Reads "Yes" or "No" if exactly one of the words occurs, else "Unknown"."""
  words = _without_punctuation(answer.lower()).split()
  if ("yes" in words) == ("no" in words):
    return "Unknown"
  return "Yes" if "yes" in words else "No"


def _without_punctuation(text: str) -> str:
  """VQA's rule: a mark next to a blank disappears, any other becomes a blank; full stops go."""
  result = text
  for mark in _PUNCTUATION:
    glued = f"{mark} " in text or f" {mark}" in text or _DIGITS_AROUND_COMMA.search(text)
    result = result.replace(mark, "" if glued else " ")
  return _FULL_STOP.sub("", result, count=_FULL_STOPS)


def _images(
    row: tables.Row, by_index: Mapping[str, tables.Row], folder: epath.Path, where: str
) -> tuple[str | bytes, ...]:
  """Images of a row: bytes from base64, else paths."""
  text = row.get("image")
  if text is not None and len(text) <= _SHORT_IMAGE and text in by_index:
    text = by_index[text].get("image")
  if text is None:
    paths = _strings(row["image_path"]) if row.get("image_path") else []
    return tuple(str(folder / path) for path in paths)
  try:
    return tuple(base64.b64decode(part, validate=True) for part in _strings(text))
  except ValueError as error:
    raise ValueError(f"{where}: malformed: the image is not in base64: {error}") from error


def _strings(text: str) -> list[str]:
  """A list written as text, or one string; raises ValueError for a list of something else."""
  if not (text.startswith("[") and text.endswith("]")):
    return [text]
  values = records.parse_json(text.replace("'", '"'))
  if not all(isinstance(value, str) for value in values):
    raise ValueError(f"{text[:60]!r} is no list of texts")
  return values
