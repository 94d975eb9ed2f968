"""MME: yes-or-no questions, two an image, in ten tasks of perception and four of cognition.

arXiv 2306.13394. A task's score is 100·(accuracy + share of images with both answers right), at most 200.
Four programs read answers differently; the paper's numbers are VLMEvalKit's. The official text files are
scored by the official rule, prediction tables by VLMEvalKit's; the score of every rule is a variant.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re

from etils import epath

from unilip_jax.common import atomic_io, paths
from unilip_jax.scores import base, mme_folder, records, tables, vlmeval

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
              "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PREFIX = 4
_INTERNVL = (("\n", ""), ("不是", "No"), ("是", "Yes"), ("否", "No"))
_CHINESE = re.compile("[\u4e00-\u9fa5]")
_COLUMNS = ("category", "image_path", "answer", "prediction")

Reader = Callable[[str], str]


@dataclasses.dataclass
class Image:
  """Holds the two questions about an image.

  Attributes:
    name: of the image.
    answers: (right answer in lower case, prediction); None where the record is malformed.
  """

  name: str
  answers: list[tuple[str, str] | None]


class Mme(vlmeval.TableBenchmark):
  """MME, perception and cognition."""

  name = "mme"
  files = ("MME.tsv",)
  md5 = {"MME.tsv": "b36b43c3f09801f5d368627fb92187c3"}  # noqa: RUF012
  revision = "MME's calculation.py; open-compass/VLMEvalKit e8e78f05 (2026-08-18)"
  published = tuple(
      base.Published(system, score, "UniLIP README", "perception, VLMEvalKit") for system, score in (
          ("UniLIP-1B", 1499), ("UniLIP-3B", 1636), ("InternVL3-1B", 1492), ("InternVL3-2B", 1633),
          ("BAGEL-3B", 1610), ("BLIP3o-4B", 1528), ("Tar-7B", 1571), ("TokLIP-7B", 1410)))

  def read_items(self, source: str) -> list[base.Item]:
    """Reads VLMEvalKit's tsv, or MME's own folder of images and text files (mme_folder.py)."""
    path = records.existing(source, "questions of MME")
    if not path.is_dir() or (path / self.files[0]).exists():
      return super().read_items(source)
    items = []
    for row, image in mme_folder.read(path, (*PERCEPTION, *COGNITION)):
      items.append(base.Item(row["index"], self.prompt(row, 1), row["category"], images=(str(image),),
                             record=row))
    return items

  def units(self, items):
    return vlmeval.group_by(items, lambda item: (item.category, item.record.get("image_path")))

  def write_answers(self, path: str, items: Sequence[base.Item], answers: Mapping[str, str]) -> None:
    """Writes VLMEvalKit's table, or the official `<task>.txt` into a folder (a path without suffix).

    A text file holds a prediction on one line: line feeds are removed, as the official program asks for,
    and tabs become blanks.
    """
    folder = paths.path(path)
    if folder.suffix:
      super().write_answers(path, items, answers)
      return
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for item in items:
      if item.id in answers:
        row, answer = item.record, answers[item.id].replace("\n", "").replace("\t", " ")
        fields = (row["image_path"].rsplit("/", 1)[-1], row["question"], row["answer"], answer)
        lines.setdefault(item.category, []).append("\t".join(fields) + "\n")
    for task, found in lines.items():
      atomic_io.write(folder / f"{task}.txt", "".join(found).encode())

  def prompt(self, row, images):
    return f"{row['question']} Answer the question using a single word or phrase."

  def group(self, row):
    return row["category"]

  def overall(self, categories):
    return sum(base.mean(categories[task]) for task in PERCEPTION if task in categories)

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a folder of official text files (`<task>.txt`) or a prediction table of VLMEvalKit.

    Text files: lines of image, question, right answer and prediction; two consecutive lines are an image. A
    malformed line is skipped, yet its image counts among those that could have both right. A task without
    a file leaves its sum undefined. Strict rules let skipped lines and absent tasks count 0.
    """
    base.check_rules(rules)
    account = records.Account()
    path = records.existing(source, "answers to MME")
    if texts := _task_files(path):
      tasks = {task: _read_text(file, account) for task, file in texts.items()}
    else:
      tasks = self._read_table(path, account)
    self._count_missing(tasks, items, account)
    own = "official" if texts else "vlmevalkit"
    read = READERS[own]
    categories = {t: task_score(i, read, strict=rules == "strict") for t, i in tasks.items()}
    if rules == "strict":
      categories |= {task: 0.0 for task in (*PERCEPTION, *COGNITION) if task not in tasks}
    variants = {"perception": _total(PERCEPTION, categories), "cognition": _total(COGNITION, categories)}
    for name in READERS.keys() - {own}:
      other = {t: task_score(i, READERS[name], strict=rules == "strict") for t, i in tasks.items()}
      variants[f"perception {name}"] = _total(PERCEPTION, other)
      variants[f"cognition {name}"] = _total(COGNITION, other)
    answers = [a for images in tasks.values() for i in images for a in i.answers if a is not None]
    return base.Score(
        variants["perception"], categories, len(answers), account.missing, account.malformed, rules,
        variants=variants,
        published_variant="perception" if own == "vlmevalkit" else "perception vlmevalkit",
        messages=tuple(account.messages),
        values=tuple(base.Value(f"{task}/{image.name}", task, task_score([image], read, strict=True))
                     for task, images in tasks.items() for image in images),
        details={"reading": own,
                 "neither yes nor no": sum(read(p) not in ("yes", "no") for _, p in answers)})

  def _read_table(self, path: epath.Path, account: records.Account) -> dict[str, list[Image]]:
    rows = tables.read(path, "predictions of MME: a table, or text files <task>.txt")
    tables.require_columns(rows, _COLUMNS, str(path))
    account.doubled("index", [r["index"] for r in rows if r.get("index")], "every row counts")
    tasks: dict[str, dict[str, Image]] = {}
    for number, row in enumerate(rows, 1):
      task, name, answer = row["category"], row["image_path"], (row["answer"] or "").lower()
      if task is None or name is None or answer not in ("yes", "no"):
        account.skip(f"{path.name}, row {number}",
                     f"category {task!r}, image_path {name!r}, answer {answer!r}")
        continue
      image = tasks.setdefault(task, {}).setdefault(name, Image(name, []))
      image.answers.append((answer, row["prediction"] or ""))
    for task, images in tasks.items():
      account.absent(f"questions of {task}", [name for name, i in images.items() if len(i.answers) == 1])
    return {task: list(images.values()) for task, images in tasks.items()}

  def _count_missing(
      self, tasks: Mapping[str, Sequence[Image]], items: str | None, account: records.Account) -> None:
    absent = [task for task in (*PERCEPTION, *COGNITION) if task not in tasks]
    if items is None:
      account.absent("tasks", absent)
      return
    expected_of = collections.Counter(item.category for item in self.read_items(items))
    for task in (*PERCEPTION, *COGNITION):
      expected = expected_of[task]
      found = sum(len(image.answers) for image in tasks.get(task, ()))
      account.absent(f"questions of {task}", range(found, expected))


def official_label(answer: str) -> str:
  """Exactly yes or no, else "yes", then "no", in the first four characters: "Not sure" is no."""
  answer = answer.lower()
  if answer in ("yes", "no"):
    return answer
  prefix = answer[:_PREFIX]
  return "yes" if "yes" in prefix else "no" if "no" in prefix else "other"


def lmms_label(answer: str) -> str:
  """lmms-eval's rule: full stops and outer blanks go, "y" and "n" count, then the official rule."""
  answer = answer.lower().strip().replace(".", "")
  if len(answer) == 1:
    return {"y": "yes", "n": "no"}.get(answer, "other")
  return official_label(answer)


def internvl_label(answer: str) -> str:
  """InternVL's post-processing, then the official rule.

  Line feeds are removed, 是, 否 and 不是, true and false become yes and no, other Chinese is removed.
  """
  for old, new in _INTERNVL:
    answer = answer.replace(old, new)
  answer = answer.lower().replace("true", "yes").replace("false", "no")
  return official_label(_CHINESE.sub("", answer))


def vlmeval_label(answer: str) -> str:
  """VLMEvalKit's rule by whole words."""
  return vlmeval.yes_or_no(answer).lower()


READERS: Mapping[str, Reader] = {
    "official": official_label, "vlmevalkit": vlmeval_label, "lmms_eval": lmms_label,
    "internvl": internvl_label}


def task_score(images: Sequence[Image], read: Reader, *, strict: bool = False) -> float:
  """Score of a task from 0 to 200.

  Args:
    images: with their answers.
    read: turns a prediction into "yes", "no" or something else.
    strict: malformed and absent answers count as wrong in the accuracy too.
  """
  right = [[a is not None and read(a[1]) == a[0] for a in image.answers] for image in images]
  readable = sum(a is not None for image in images for a in image.answers)
  total = sum(max(2, len(image.answers)) for image in images) if strict else readable
  if not total:
    return float("nan")
  accuracy = sum(map(sum, right)) / total
  both = sum(len(r) >= 2 and r[0] and r[1] for r in right) / len(images)
  return accuracy * 100 + both * 100


def _total(tasks: Sequence[str], scores: Mapping[str, float]) -> float | None:
  return sum(scores[task] for task in tasks) if all(task in scores for task in tasks) else None


def _task_files(path: epath.Path) -> dict[str, epath.Path]:
  if not path.is_dir():
    return {}
  files = {task: path / f"{task}.txt" for task in (*PERCEPTION, *COGNITION)}
  return {task: file for task, file in files.items() if file.exists()}


def _read_text(file: epath.Path, account: records.Account) -> list[Image]:
  """Reads an official text file; two consecutive lines make an image."""
  answers = []
  for number, line in records.json_lines(file):
    fields = line.split("\t")
    where = f"{file.name}, line {number}"
    if len(fields) != 4:
      account.skip(where, f"{len(fields)} fields, not image, question, right answer and prediction")
      answers.append((None, ""))
    elif fields[2].lower() not in ("yes", "no"):
      account.skip(where, f"the right answer is {fields[2]!r} (the official program stops)")
      answers.append((None, fields[0]))
    else:
      answers.append(((fields[2].lower(), fields[3]), fields[0]))
  images = []
  for first in range(0, len(answers), 2):
    pair = answers[first:first + 2]
    if len({name for _, name in pair if name}) > 1:
      account.note(f"{file.name}, lines {first + 1} and {first + 2} count as one image, but name "
                   f"{pair[0][1]} and {pair[1][1]}")
    images.append(Image(pair[0][1] or f"line {first + 1}", [answer for answer, _ in pair]))
  if len(answers) % 2:
    account.absent(f"questions of {file.stem}", [f"the second one about {images[-1].name}"])
  account.doubled(f"{file.stem}: the image", [i.name for i in images], "every pair of lines counts")
  return images
