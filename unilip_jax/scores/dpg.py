"""DPG-Bench: 1065 dense prompts, each checked by questions that depend on each other (arXiv 2403.05135).

A question-answering model (mPLUG-large) looks at each tile of a 2×2 grid of samples. The score of a tile
is the share of questions answered "yes", where a question whose parent is not counts no. The official
program loses the first question of the first item: its reader skips a row of data.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from etils import epath

from unilip_jax.scores import base, records

_QUESTIONS = ("dpg_bench.csv", "questions.csv")
_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
_DETAIL = "_detail.txt"
_ALL = "all"
_TILE = re.compile(r"^(?P<image>.*?), \((?P<box>[\d, ]+)\), (?P<rest>.*)$")


@dataclasses.dataclass(frozen=True)
class Question:
  """Holds a question about an item.

  Attributes:
    number: `proposition_id`.
    text: in natural language.
    category: as "attribute - color"; the first level ends at " - ".
    parents: numbers of questions that must be answered "yes"; 0 is no question.
  """

  number: int
  text: str
  category: str
  parents: tuple[int, ...]


class Dpg(base.Benchmark):
  """DPG-Bench with four samples a prompt in one image."""

  name = "dpg"
  kind = "generation"
  revision = "TencentQQGYLab/ELLA 3c228f1d (2024-07-17), dpg_bench"
  samples_per_image = 4  # `--pic-num`

  def read_items(self, source: str) -> list[base.Item]:
    """Reads `dpg_bench.csv`, or a folder with it or with the prompt files `<item_id>.txt`."""
    path = records.existing(source, "DPG-Bench prompts")
    if path.is_dir() and not any((path / name).exists() for name in _QUESTIONS):
      files = records.files(path, ".txt")
      if not files:
        raise FileNotFoundError(f"{path} lacks {' or '.join(_QUESTIONS)} and holds no <item_id>.txt")
      named = [(f.stem, records.read_text(f).strip()) for f in files]
    else:
      named = list(_texts(records.find_file(path, _QUESTIONS, "the questions of DPG-Bench")).items())
    records.check_names(source, named)
    return [base.Item(name, text, _ALL) for name, text in named]

  def output_path(self, item: base.Item, k: int) -> str:
    if k:
      raise ValueError(f"{self.name} has one image a prompt, of {self.samples_per_image} samples")
    return f"{item.id}.png"

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a folder with the questions, the images and the answers of the question-answering model.

    Answers are the official program's `*_detail.txt`, or `answers.json` with {"question|tile": answer}.
    Images that lack an answer or depend on a lost question are dropped. Strict rules keep the first
    question of the file, and let dropped and absent images count 0.
    """
    base.check_rules(rules)
    account = records.Account()
    folder = records.existing(source, "answers about DPG-Bench")
    place = records.existing(items, "DPG-Bench questions") if items else folder
    file = records.find_file(place, _QUESTIONS, "the questions of DPG-Bench; name the file with --items")
    questions = read_questions(file, every=rules == "strict")
    account.doubled("the question", [f"{name}, {number}" for name, number, _ in _propositions(file)],
                    "the last one counts")
    answers = _Answers(folder, questions, account)
    scores: dict[str, float] = {}
    by_category: dict[str, list[float]] = {}
    for name in answers.images:
      tiles = [answers.of(name, tile, questions.get(name, ())) for tile in range(self.samples_per_image)]
      if problem := _problem(questions.get(name, ()), tiles):
        account.skip(f"image {name}", f"{problem}: the official program drops it")
        continue
      scores[name] = base.mean(score_tile(questions[name], t) for t in tiles)
      for question in questions[name]:
        right = float(tiles[-1][question.number] == "yes")
        by_category.setdefault(question.category, []).append(right)
    account.absent("images", [name for name in questions if name not in answers.images])
    if rules == "strict":
      for name in questions.keys() - scores.keys():
        scores[name] = 0.0
        for question in questions[name]:
          by_category.setdefault(question.category, []).append(0.0)
    first: dict[str, list[float]] = {}
    for category, values in by_category.items():
      first.setdefault(category.split("-")[0].strip(), []).extend(values)
    score = base.mean(scores.values()) if scores else None
    return base.Score(
        score, {c: base.mean(v) for c, v in first.items()}, len(scores), account.missing,
        account.malformed, rules, variants={"mean of images": score}, published_variant="mean of images",
        messages=tuple(account.messages),
        values=tuple(base.Value(n, _ALL, s) for n, s in scores.items()),
        details={"second level": {c: base.mean(by_category[c]) for c in sorted(by_category)},
                 "images": scores})


class DpgOne(Dpg):
  """DPG-Bench with one sample a prompt (`--pic-num 1`)."""

  name = "dpg-1"
  samples_per_image = 1


def read_questions(path: epath.Path, *, every: bool) -> dict[str, list[Question]]:
  """Reads the questions of each item.

  Args:
    path: of the CSV file.
    every: False skips the first row, and an item that appears again later loses its earlier questions, as
      in the official reader.

  Raises:
    ValueError: for malformed rows.
  """
  questions: dict[str, dict[int, Question]] = {}
  previous = None
  for position, (name, number, row) in enumerate(_propositions(path)):
    if position == 0 and not every:
      continue
    if name not in questions or (name != previous and not every):
      questions[name] = {}
    questions[name][number] = Question(
        number, row["question_natural_language"], row["tuple"].split("(")[0].strip(),
        tuple(int(d) for d in row["dependency"].split(",")))
    previous = name
  return {name: list(found.values()) for name, found in questions.items()}


def score_tile(questions: Sequence[Question], answers: Mapping[int, str]) -> float:
  """Share of questions that count, in one tile.

  In the order of the file a question with a parent that counts 0 becomes 0 itself, in place: zeros reach
  later children, but not a child that stands before its parent.
  """
  right = {q.number: float(answers[q.number] == "yes") for q in questions}
  for question in questions:
    if any(parent and right[parent] == 0 for parent in question.parents):
      right[question.number] = 0.0
  return sum(right.values()) / len(right)


class _Answers:
  """Answers about images, from either of two kinds of files.

  Attributes:
    images: names without suffix, in order.
  """

  def __init__(
      self, folder: epath.Path, questions: Mapping[str, Sequence[Question]], account: records.Account):
    self._found: dict[tuple[str, int, str], str] = {}
    if details := records.files(folder, _DETAIL):
      self.images = self._read_details(details, questions, account)
      return
    file = records.find_file(folder, ("answers.json",), f"the answers, or the official *{_DETAIL}")
    table = records.read_json(file, account)
    table = table.get("answers", table) if isinstance(table, dict) else None
    if not isinstance(table, dict):
      raise ValueError(f'{file} is no object of "question|tile": answer')
    for name, found in questions.items():
      for question in found:
        for tile in range(4):
          if isinstance(answer := table.get(f"{question.text}|{tile}"), str):
            self._found[name, tile, question.text] = answer
    self.images = list(dict.fromkeys(f.name.split(".")[0] for f in records.files(folder, ".png")))
    if not self.images:
      self.images = list(dict.fromkeys(name for name, _, _ in self._found))

  def of(self, name: str, tile: int, questions: Sequence[Question]) -> dict[int, str]:
    """{question's number: answer} about a tile; absent answers are left out."""
    return {q.number: self._found[name, tile, q.text] for q in questions
            if (name, tile, q.text) in self._found}

  def _read_details(
      self, files: Sequence[epath.Path], questions: Mapping[str, Sequence[Question]],
      account: records.Account) -> list[str]:
    images = {}
    for file in files:
      for number, line in records.json_lines(file):
        match = _TILE.match(line)
        if not match:
          account.skip(f"{file.name}, line {number}", "no image, tile, question and answer")
          continue
        name = match["image"].split("/")[-1].split(".")[0]
        x, y = (int(n) > 0 for n in match["box"].split(",")[:2])
        images[name] = True
        for question in questions.get(name, ()):
          if match["rest"].startswith(f"{question.text}, "):
            self._found[name, x + 2 * y, question.text] = match["rest"][len(question.text) + 2:]
    return list(images)


def _problem(questions: Sequence[Question], tiles: Sequence[Mapping[int, str]]) -> str:
  """Why an image has no score; "" if it has one."""
  if not questions:
    return "no such item"
  numbers = {q.number for q in questions}
  for question in questions:
    for parent in question.parents:
      if parent and parent not in numbers:
        return f"question {question.number} depends on question {parent}, which is not read"
  for index, answers in enumerate(tiles):
    if lacking := sorted(numbers - answers.keys()):
      return f"tile {index} lacks answers to questions {records.enumerate_names(lacking)}"
  return ""


def _texts(path: epath.Path) -> dict[str, str]:
  """Reads {item_id: prompt} of the file of questions.

  Raises:
    ValueError: for malformed rows, an item with several prompts, or a question that occurs twice.
  """
  texts: dict[str, str] = {}
  questions = []
  for row_number, (name, number, row) in enumerate(_propositions(path), 2):
    where = f"{path.name}, row {row_number}"
    if not (text := row.get("text")):
      raise ValueError(f"{where}: malformed: item {name} has no text")
    if texts.setdefault(name, text) != text:
      raise ValueError(f"{where}: item {name} has another text than in the rows before: two items of the "
                       "same id; the folder of prompts <item_id>.txt can be read instead")
    questions.append(f"{name}, question {number}")
  records.check_unique(path, questions)
  return texts


def _propositions(path: epath.Path) -> list[tuple[str, int, dict[str, Any]]]:
  """Reads (item_id, proposition_id, row) of each question; raises ValueError for malformed rows."""
  rows = records.csv_rows(path)
  if lacking := [name for name in _COLUMNS if not rows or name not in rows[0]]:
    raise ValueError(f"{path} lacks the columns {', '.join(lacking)}: the questions of DPG-Bench")
  found = []
  for number, row in enumerate(rows, 2):
    where = f"{path.name}, row {number}: malformed"
    if empty := [name for name in _COLUMNS if not row[name]]:
      raise ValueError(f"{where}: no {', '.join(empty)}")
    try:
      [int(parent) for parent in row["dependency"].split(",")]
      found.append((row["item_id"], int(row["proposition_id"]), row))
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
  return found
