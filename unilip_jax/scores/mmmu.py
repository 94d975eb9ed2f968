"""MMMU: college questions in thirty subjects, multiple choice and open (arXiv 2311.16502).

VLMEvalKit (what the paper used) turns an open question into a choice of the right answer and "Other
Answers". The official evaluator compares strings and numbers; it scores `answers.json` with `outputs.json`.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from unilip_jax.scores import base, mmmu_rules, multiple_choice, records

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": ("Basic_Medical_Science", "Clinical_Medicine",
                            "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health"),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": ("Agriculture", "Architecture_and_Engineering", "Computer_Science",
                             "Electronics", "Energy_and_Power", "Materials", "Mechanical_Engineering")}
_SUBJECTS = [subject for subjects in DOMAINS.values() for subject in subjects]
_ANSWERS = ("answers.json", "answer_dict_val.json")
_OUTPUTS = ("outputs.json", "total_val_output.json")


class Mmmu(multiple_choice.MultipleChoice):
  """MMMU, split validation.

  As in VLMEvalKit's adapter of InternVL, the marks `<image n>` stay in the text, all images come first, and
  the first one is enlarged twofold (bilinear) before it is cut into tiles.
  """

  name = "mmmu"
  files = ("MMMU_DEV_VAL.tsv",)
  md5 = {"MMMU_DEV_VAL.tsv": "585e8ad75e73f75dcad265dfd0417d64"}  # noqa: RUF012
  max_tiles = 12
  first_image_scale = 2
  split = "validation"
  published = tuple(base.Published(system, score / 100, "UniLIP README") for system, score in (
      ("UniLIP-1B", 43.3), ("UniLIP-3B", 48.7), ("InternVL3-1B", 43.4), ("InternVL3-2B", 48.2),
      ("BAGEL-3B", 43.2), ("BLIP3o-4B", 46.6), ("Tar-7B", 39.0), ("TokLIP-7B", 42.1)))

  def prepare(self, rows, source):
    """An open question becomes a choice: A the right answer, B "Other Answers"."""
    return [row if row.get("A") is not None else
            {**row, "A": row.get("answer"), "B": "Other Answers", "answer": row.get("answer") and "A"}
            for row in super().prepare(rows, source)]

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a prediction table of VLMEvalKit, or a folder of the official evaluator's two files."""
    base.check_rules(rules)
    path = records.existing(source, "answers to MMMU")
    if path.is_dir() and any((path / name).exists() for name in _OUTPUTS):
      return self._official(path, rules, items)
    return super().aggregate(source, rules=rules, items=items)

  def _official(self, folder: epath.Path, rules: str, items: str | None) -> base.Score:
    """Scores letters and open answers; accuracies are rounded to 3 decimals."""
    account = records.Account()
    outputs = records.read_json(records.find_file(folder, _OUTPUTS, "the answers"), account)
    place = records.existing(items, "right answers of MMMU") if items else folder
    answers = records.read_json(records.find_file(place, _ANSWERS, "the right answers"), account)
    if not isinstance(outputs, dict) or not isinstance(answers, dict):
      raise ValueError(f"{folder}: answers and right answers must be objects with an entry a question")
    for name in [name for name, answer in answers.items() if not _is_answer(answer)]:
      account.skip(f"right answer of {name}", str(answers.pop(name)))
    right: dict[str, list[tuple[str, bool]]] = {}
    for name, output in outputs.items():
      subject = "_".join(name.split("_")[1:-1])
      if name not in answers or subject not in _SUBJECTS:
        account.note(f"{name} is no question of the right answers and counts nothing")
      elif not isinstance(output, str):
        account.skip(name, f"{output!r} is no text (the official evaluator stops)")
      else:
        right.setdefault(subject, []).append((name, _is_right(answers[name], output)))
    absent = [name for name in answers if name not in outputs]
    account.absent("questions", absent)
    if rules == "strict":
      scored = {name for found in right.values() for name, _ in found}
      for name in answers:
        if name not in scored:
          right.setdefault("_".join(name.split("_")[1:-1]), []).append((name, False))
    table = {subject: (len(right[subject]), base.mean(float(r) for _, r in right[subject]))
             for subject in _SUBJECTS if subject in right}
    categories = {}
    for domain, subjects in DOMAINS.items():
      categories[f"Overall-{domain}"] = _pooled([table[s] for s in subjects if s in table])
      categories |= {s: round(table[s][1], 3) for s in subjects if s in table}
    overall = _pooled(list(table.values()))
    return base.Score(
        overall, categories, sum(n for n, _ in table.values()), account.missing, account.malformed, rules,
        variants={"official evaluator": overall}, published_variant="", messages=tuple(account.messages),
        values=tuple(base.Value(name, s, float(r)) for s in _SUBJECTS for name, r in right.get(s, ())),
        details={"questions": {s: n for s, (n, _) in table.items()}})


def _is_answer(answer: Any) -> bool:
  if not isinstance(answer, dict) or not isinstance(answer.get("question_type"), str):
    return False
  gold = answer.get("ground_truth")
  return isinstance(gold, str) or (isinstance(gold, list) and all(isinstance(g, str) for g in gold))


def _is_right(answer: Mapping, output: str) -> bool:
  gold = answer["ground_truth"]
  if answer["question_type"] == "multiple-choice":
    return output in gold if isinstance(gold, list) else output == gold
  return mmmu_rules.is_open_right(gold, mmmu_rules.parse_open(output))


def _pooled(table: list[tuple[int, float]]) -> float:
  """Accuracy over questions of several subjects, rounded; 0 without any."""
  total = sum(n for n, _ in table)
  return round(sum(n * accuracy for n, accuracy in table) / total, 3) if total else 0.0
