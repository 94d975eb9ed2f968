"""MM-Vet: open questions that need up to six capabilities, graded from 0 to 1 by a chat model.

arXiv 2308.02490. Numbers of different judges are not comparable: the official one is gpt-4-0613,
VLMEvalKit's gpt-4-turbo.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any

import numpy as np

from unilip_jax.common import atomic_io, paths
from unilip_jax.scores import base, records, requests, scripts, tables, vlmeval

_CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_METADATA = ("mm-vet.json", "MMVet.tsv")
_GRADES = "-grade-"
_RETRY = "(digit)"


class MmVet(vlmeval.TableBenchmark):
  """MM-Vet; the score is a fraction."""

  name = "mmvet"
  files = _METADATA
  license = "non-commercial research and education (LICENSE_DATASET)"
  md5 = {"MMVet.tsv": "748aa6d4…"}  # noqa: RUF012
  revision = "yuweihao/MM-Vet acde843e; open-compass/VLMEvalKit e8e78f05 (2026-08-18)"
  published = tuple(
      base.Published(system, score / 100, "UniLIP README", "VLMEvalKit; its judge is gpt-4-turbo")
      for system, score in (
          ("UniLIP-1B", 59.4), ("UniLIP-3B", 62.2), ("InternVL3-1B", 59.5), ("InternVL3-2B", 62.2),
          ("BAGEL-3B", 48.2), ("BLIP3o-4B", 60.1)))
  judge = requests.Preset("gpt-4-0613", tries=5, note="VLMEvalKit: gpt-4-turbo (gpt-4-1106-preview)")
  judge_files = "mm-vet_evaluator.py of github.com/yuweihao/MM-Vet"

  def read_items(self, source: str) -> list[base.Item]:
    """Reads `mm-vet.json` with `images/<imagename>`, or VLMEvalKit's tsv."""
    path = records.find_file(records.existing(source, "questions of MM-Vet"), _METADATA, "the questions")
    if path.suffix != ".json":
      return super().read_items(str(path))
    items = []
    found = records.read_items_json(path)
    if not isinstance(found, dict):
      raise ValueError(f"{path} holds a {type(found).__name__}; expected an object: id, question")
    for name, record in found.items():
      records.require(record, {"imagename": str, "question": str, "answer": str, "capability": list},
                      f"{path.name}, {name}")
      items.append(base.Item(name, record["question"], "_".join(record["capability"]),
                             images=(str(path.parent / "images" / record["imagename"]),), record=record))
    records.check_names(path, [(item.id, item.prompt) for item in items])
    return items

  def prompt(self, row, images):
    return row["question"]

  def group(self, row):
    return (row.get("category") or "").replace(",", "_")

  def write_answers(
      self, path: str, items: Sequence[base.Item], answers: Mapping[str, str]) -> None:
    """Writes {id: answer} to a `.json` file, else VLMEvalKit's table."""
    if not path.endswith(".json"):
      super().write_answers(path, items, answers)
      return
    target = paths.path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_io.write(target, json.dumps({i.id: answers[i.id] for i in items if i.id in answers}).encode())

  def read_prompts(self, path: str) -> dict[str, str]:
    """Reads the few-shot prompt and the sentence of later tries."""
    script = scripts.Script(path, self.judge_files)
    return {"prompt": script.constant("prompt"), "retry": script.string_with(_RETRY)}

  def judge_requests(self, item, images, prompts, attempt=0):
    """One text message; from the second try on a sentence more, from the third a higher temperature."""
    gold = item.record["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    row = " | ".join([item.prompt, gold, images[0].decode(), ""])
    text = f"{prompts['prompt']}\n{row}{prompts['retry'] if attempt else ''}"
    return [requests.Request((requests.Message("user", (text,)),), max_tokens=3,
                             temperature=max(0.0, 0.5 * (attempt - 1)))]

  def parse(self, answers):
    score = parse_grade(answers[""])
    return None if score is None else {"score": score}

  def write_judgements(
      self, folder: str, items: Sequence[base.Item], judgements: Iterable[base.Judgement]) -> None:
    """Writes the official grade file; its model is the preset's."""
    out = paths.path(folder)
    out.mkdir(parents=True, exist_ok=True)
    by_id = {j.item_id: j for j in judgements if j.scores is not None}
    grades = {i.id: {"model": [self.judge.model], "content": [by_id[i.id].answers[""]],
                     "score": [by_id[i.id].scores["score"]]} for i in items if i.id in by_id}
    atomic_io.write(out / f"{out.name}_{self.judge.model}{_GRADES}1runs.json",
                    json.dumps(grades, indent=4).encode())

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a folder with `mm-vet.json` and a grade file, or VLMEvalKit's table with `score`.

    The official sums are divided by the number of questions, so an absent grade counts 0. VLMEvalKit
    counts a question of a single capability twice in that capability; strict rules count it once.
    """
    base.check_rules(rules)
    account = records.Account()
    path = records.existing(source, "grades of MM-Vet")
    if not path.is_dir() and path.suffix in (".tsv", ".csv", ".xlsx", ".jsonl"):
      return self._table(tables.read(path, "grades of MM-Vet"), account, rules, source)
    if not path.is_dir():
      value = records.read_json(path, account)
      if isinstance(value, dict) and {"metadata", "grades"} <= value.keys():
        return self._grades(value["metadata"], value["grades"], account, rules)
      return self._table(tables.read(path, "grades of MM-Vet"), account, rules, source)
    place = records.existing(items, "MM-Vet's questions") if items else path
    metadata = records.read_json(records.find_file(place, _METADATA[:1], "the questions"), account)
    files = [f for f in records.files(path, ".json") if _GRADES in f.name]
    if len(files) != 1:
      raise ValueError(f"{path} holds {len(files)} grade files (*{_GRADES}*runs.json), expected one")
    return self._grades(metadata, records.read_json(files[0], account), account, rules)

  def _grades(self, metadata: Any, grades: Any, account: records.Account, rules: str) -> base.Score:
    """Scores the official grade file; with several runs the mean over runs."""
    if not isinstance(metadata, dict) or not isinstance(grades, dict):
      raise ValueError("MM-Vet's questions and grades must be objects with an entry a question")
    for name in [n for n, record in metadata.items() if not _is_question(record)]:
      account.skip(f"question {name}", "no list of capabilities")
    metadata = {n: record for n, record in metadata.items() if _is_question(record)}
    runs = max((len(g["score"]) for g in grades.values() if _is_graded(g)), default=1)
    table: dict[str, np.ndarray] = {}
    for name, grade in grades.items():
      if name not in metadata:
        account.note(f"{name} is not among the questions and counts nothing")
      elif not _is_graded(grade) or len(grade["score"]) < runs:
        account.skip(name, f"not {runs} grades")
      else:
        table[name] = np.array(grade["score"][:runs], np.float64)
        for value in table[name]:
          account.check_range(name, value, 0, 1)
    account.absent("grades", [name for name in metadata if name not in grades])
    zero = np.zeros(runs)
    values = {name: table.get(name, zero) for name in metadata}

    def total(names: Sequence[str]) -> float:
      return round(float(np.mean(sum((values[n] for n in names), zero) / len(names) * 100)), 1) / 100

    needed = {c: [n for n in metadata if c in metadata[n]["capability"]] for c in _CAPABILITIES}
    categories = {c: total(names) for c, names in needed.items() if names}
    score = total(list(metadata)) if metadata else None
    return base.Score(
        score, categories, len(table), account.missing, account.malformed, rules,
        variants={"official": score}, messages=tuple(account.messages),
        values=tuple(base.Value(n, "all", float(v.mean())) for n, v in values.items()),
        details={"runs": runs, "questions": {c: len(names) for c, names in needed.items()}})

  def _table(
      self, rows: Sequence[tables.Row], account: records.Account, rules: str, source: str) -> base.Score:
    tables.require_columns(rows, ("category", "score"), source)
    found: dict[str, list[float]] = {}
    scores = []
    for number, row in enumerate(rows, 1):
      try:
        grade = float(row["score"] or "nan")
      except ValueError:
        grade = float("nan")
      if grade != grade or row["category"] is None:
        account.skip(f"row {number}", f"score {row['score']!r}, category {row['category']!r}")
        if rules == "official" or row["category"] is None:
          continue
        grade = 0.0
      account.check_range(f"row {number}", grade, 0, 1)
      scores.append((row.get("index") or str(number), grade))
      for capability in _CAPABILITIES:
        if capability in row["category"]:
          found.setdefault(capability, []).append(grade)
      joined = row["category"].replace(",", "_")
      if joined not in _CAPABILITIES or rules == "official":
        found.setdefault(joined, []).append(grade)
    account.doubled("index", [i for i, _ in scores], "every row counts")
    overall = base.mean(grade for _, grade in scores) if scores else None
    return base.Score(
        overall, {c: base.mean(found[c]) for c in _CAPABILITIES if c in found}, len(scores),
        account.missing, account.malformed, rules, variants={"vlmevalkit": overall},
        published_variant="vlmevalkit", messages=tuple(account.messages),
        values=tuple(base.Value(i, "all", g) for i, g in scores),
        details={"combinations": {c: base.mean(v) for c, v in found.items()},
                 "questions": {c: len(v) for c, v in found.items()}})


def parse_grade(answer: str) -> float | None:
  """The first word as a number from 0 to 1, else None ("nan" passes the official test of the range)."""
  try:
    score = float(answer.split(" ")[0].strip())
  except ValueError:
    return None
  return None if score > 1 or score < 0 else score


def _is_question(record: Any) -> bool:
  return isinstance(record, dict) and isinstance(record.get("capability"), list)


def _is_graded(grade: Any) -> bool:
  return isinstance(grade, dict) and isinstance(grade.get("score"), list) and bool(grade["score"]) and all(
      isinstance(s, int | float) for s in grade["score"])
