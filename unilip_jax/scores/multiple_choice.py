"""Multiple choice by VLMEvalKit's rules: MMBench with its circular evaluation, SEED-Bench, AI2D.

MMBench asks each question once for every rotation of its options (rows with index + k·1 000 000); it counts
only if all are right. Accuracy is reported by split, and by category within a split.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
import string

from unilip_jax.scores import base, records, tables, vlmeval

_ROTATION = 1_000_000
_ABBREVIATIONS = {
    "coarse_perception": "CP", "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C", "logic_reasoning": "LR",
    "relation_reasoning": "RR", "attribute_reasoning": "AR"}
_NO_SPLIT = "none"
_LETTER_AND_STOP = re.compile(r"\s*([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Hit:
  """Holds whether a question was answered right.

  Attributes:
    id: of the question.
    row: of the question's table.
    hit: whether right.
  """

  id: str
  row: tables.Row
  hit: bool


class MultipleChoice(vlmeval.TableBenchmark):
  """Each row is a question.

  Attributes:
    split: whose accuracy is the score; "" pools all splits.
    readings: {variant: whether another program's rule counts the answer of a row as right}.
  """

  split = ""
  readings: Mapping[str, Callable[[tables.Row], bool]] = {}

  def hits(self, rows: Sequence[tables.Row], account: records.Account) -> list[Hit]:
    """Answers of rows with prediction and right answer."""
    del account
    return [Hit(row["index"], row, self.chosen(row) == row["answer"]) for row in rows]

  def chosen(self, row: tables.Row) -> str | None:
    """Letter that a prediction chooses, None if unclear."""
    return vlmeval.infer_option(row.get("prediction") or "", vlmeval.choices(row))

  def absent(self, rows: Sequence[tables.Row], expected: Mapping[str, tables.Row]) -> list[str]:
    """Indices of questions without a prediction."""
    found = {row["index"] for row in rows}
    return [index for index in expected if index not in found]

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a prediction table of VLMEvalKit, or one with its `hit` column and no prediction.

    An answer that no rule understands is wrong. Rows without index or right answer are skipped. Strict
    rules let skipped rows and questions of `items` without a prediction count 0.
    """
    base.check_rules(rules)
    account = records.Account()
    rows = self.prepare(tables.read(source, f"predictions of {self.name}"), source)
    readable = [_is_readable(row, number, account) for number, row in enumerate(rows, 1)]
    kept = [row for row, is_kept in zip(rows, readable) if is_kept]
    account.doubled("index", [row["index"] for row in kept], "every row counts")
    hits = ([Hit(row["index"], row, row["hit"] in ("1", "1.0", "True")) for row in kept]
            if "prediction" not in rows[0] else self.hits(kept, account))
    expected = {i.id: dict(i.record) for i in self.read_items(items)} if items else {}
    absent = self.absent(kept, expected)
    account.absent("questions", absent)
    if rules == "strict":
      hits += [Hit(str(row.get("index")), row, False)
               for row, is_kept in zip(rows, readable) if not is_kept]
      hits += [Hit(index, expected[index], False) for index in absent if index in expected]
    unclear = sum(self.chosen(row) is None for row in kept) if "prediction" in rows[0] else 0
    return self.score(hits, account, rules, {"answers that no rule understands": unclear})

  def prepare(self, rows: list[tables.Row], source: str) -> list[tables.Row]:
    """Checks a table's columns."""
    tables.require_columns(rows, ("index", "answer"), source)
    if not any("prediction" in row or "hit" in row for row in rows):
      raise ValueError(f"{source} has neither the column prediction nor hit")
    return rows

  def score(
      self, hits: Sequence[Hit], account: records.Account, rules: str, details: Mapping[str, int]
  ) -> base.Score:
    """Accuracy by split and category."""
    splits: dict[str, list[Hit]] = {}
    for hit in hits:
      splits.setdefault(hit.row.get("split") or _NO_SPLIT, []).append(hit)
    chosen = self.split if self.split in splits else next(iter(splits)) if len(splits) == 1 else ""
    counted = splits[chosen] if chosen else list(hits)
    variants = {f"split {name}": accuracy(found) for name, found in sorted(splits.items())}
    if len(splits) > 1:
      variants["all splits"] = accuracy(hits)
    if any("prediction" in hit.row for hit in counted):
      variants |= {name: base.mean(float(is_right(hit.row)) for hit in counted)
                   for name, is_right in self.readings.items()}
    return base.Score(
        accuracy(counted), by_category(counted), len(counted), account.missing, account.malformed, rules,
        variants=variants, published_variant=f"split {chosen}" if chosen else "all splits",
        messages=tuple(account.messages),
        values=tuple(base.Value(h.id, self.group(h.row), float(h.hit)) for h in counted),
        details={**details, "categories by split": {s: by_category(h) for s, h in sorted(splits.items())}})


class MMBench(MultipleChoice):
  """MMBench, circular evaluation."""

  name = "mmbench"
  files = ("MMBench_DEV_EN_V11.tsv", "MMBench_DEV_EN.tsv")
  md5 = {"MMBench_DEV_EN.tsv": "b6caf113…", "MMBench_DEV_EN_V11.tsv": "30c05be8…"}  # noqa: RUF012
  split = "dev"

  def units(self, items):
    return vlmeval.group_by(items, lambda item: int(item.id) % _ROTATION)

  published = tuple(
      base.Published(system, score / 100, "UniLIP README", "split and version are not stated")
      for system, score in (
          ("UniLIP-1B", 72.6), ("UniLIP-3B", 80.7), ("InternVL3-1B", 72.6), ("InternVL3-2B", 80.6),
          ("BAGEL-3B", 79.2), ("BLIP3o-4B", 78.6), ("Tar-7B", 74.4)))

  def hits(self, rows, account):
    groups: dict[int, list[tables.Row]] = {}
    for row in rows:
      groups.setdefault(int(row["index"]) % _ROTATION, []).append(row)
    hits = []
    for row in rows:
      question = int(row["index"]) % _ROTATION
      if int(row["index"]) == question:
        right = all(self.chosen(r) == r["answer"] for r in groups[question])
        hits.append(Hit(row["index"], row, right))
    if orphans := sorted(groups.keys() - {int(h.id) for h in hits}):
      account.note(f"{len(orphans)} questions lack their first rotation and are not counted: "
                   f"{records.enumerate_names(orphans)}")
    return hits

  def absent(self, rows, expected):
    """Rotations without a prediction; without `expected` those that a question's options imply."""
    found = {int(row["index"]) for row in rows}
    if expected:
      return [index for index in expected if int(index) not in found]
    implied = {}
    for row in rows:
      question, options = int(row["index"]) % _ROTATION, vlmeval.choices(row)
      implied |= {question + k * _ROTATION: True for k in range(len(options))}
    several = any(index >= _ROTATION for index in found)  # else the table has no rotations at all
    return [str(index) for index in implied if index not in found] if several else []

  def score(self, hits, account, rules, details):
    if rules == "strict":  # a rotation that is absent or malformed is a question answered wrong
      by_question: dict[int, list[Hit]] = {}
      for hit in hits:
        if hit.id.isdecimal():
          by_question.setdefault(int(hit.id) % _ROTATION, []).append(hit)
      hits = [dataclasses.replace(found[0], id=str(q), hit=all(h.hit for h in found))
              for q, found in by_question.items()]
    return super().score(hits, account, rules, details)


def is_right_for_seed_of_lmms_eval(row: tables.Row) -> bool:
  """lmms-eval's rule of SEED: the first character of the answer, in either case."""
  return _equal((row.get("prediction") or "").strip()[:1], row)


def is_right_for_ai2d_of_lmms_eval(row: tables.Row) -> bool:
  """lmms-eval's rule of AI2D: a letter and a full stop first, else the answer without punctuation."""
  answer = row.get("prediction") or ""
  found = _LETTER_AND_STOP.match(answer)
  return _equal((found[1] if found else answer.strip()).translate(_NO_PUNCTUATION), row)


def _equal(answer: str, row: tables.Row) -> bool:
  return row.get("answer") is not None and answer.lower() == row["answer"].strip().lower()


class Seed(MultipleChoice):
  """SEED-Bench, images."""

  readings = {"lmms_eval": is_right_for_seed_of_lmms_eval}  # noqa: RUF012

  name = "seed"
  files = ("SEEDBench_IMG.tsv",)
  md5 = {"SEEDBench_IMG.tsv": "68017231…"}  # noqa: RUF012
  published = tuple(base.Published(system, score / 100, "UniLIP README") for system, score in (
      ("UniLIP-1B", 71.0), ("UniLIP-3B", 75.0), ("InternVL3-1B", 71.1), ("InternVL3-2B", 75.0),
      ("BLIP3o-4B", 73.8), ("Tar-7B", 73.0), ("TokLIP-7B", 65.2)))


class Ai2d(MultipleChoice):
  """AI2D, diagrams with masked letters (AI2D_TEST; AI2D_TEST_NO_MASK is another set)."""

  readings = {"lmms_eval": is_right_for_ai2d_of_lmms_eval}  # noqa: RUF012

  name = "ai2d"
  files = ("AI2D_TEST.tsv",)
  md5 = {"AI2D_TEST.tsv": "0f593e0d…"}  # noqa: RUF012
  published = tuple(base.Published(system, score / 100, "UniLIP README") for system, score in (
      ("UniLIP-1B", 70.7), ("UniLIP-3B", 78.6), ("InternVL3-1B", 69.4), ("InternVL3-2B", 78.5)))


def accuracy(hits: Sequence[Hit]) -> float:
  """Share of right answers."""
  return base.mean(float(h.hit) for h in hits)


def by_category(hits: Sequence[Hit]) -> dict[str, float]:
  """Accuracy by `l2-category` (MMBench's abbreviated), then by `category`."""
  table = {}
  for column in ("l2-category", "category"):
    names = sorted({name for h in hits if (name := h.row.get(column)) is not None})
    table |= {_ABBREVIATIONS.get(name, name): accuracy([h for h in hits if h.row.get(column) == name])
              for name in names}
  return table


def _is_readable(row: tables.Row, number: int, account: records.Account) -> bool:
  if not (row.get("index") or "").isdecimal():
    account.skip(f"row {number}", f"index is {row.get('index')!r}")
  elif row.get("answer") is None:
    account.skip(f"row {number}", f"question {row['index']} has no right answer")
  else:
    return True
  return False
