"""MMVP: pairs of images that CLIP confuses, one question about both (arXiv 2401.06209).

A pair counts if both answers are right; rows 2i and 2i+1 are a pair. VLMEvalKit's reading of answers is the
paper's; InternVL's own script reads them differently, with a bug: "Answer: B" becomes A.
"""

from collections.abc import Mapping
import re

from unilip_jax.scores import base, multiple_choice, records, tables, vlmeval

_OPTIONS = re.compile(r"\(a\)(.*)\(b\)(.*)", re.DOTALL)


class Mmvp(multiple_choice.MultipleChoice):
  """MMVP, accuracy of pairs."""

  name = "mmvp"
  files = ("MMVP.tsv", "Questions.csv")
  md5 = {"MMVP.tsv": "8cb732b1…"}  # noqa: RUF012
  published = tuple(base.Published(system, score / 100, "UniLIP README") for system, score in (
      ("UniLIP-1B", 68.7), ("UniLIP-3B", 73.0), ("InternVL3-1B", 67.3), ("InternVL3-2B", 72.7),
      ("BAGEL-3B", 54.7)))

  def read_items(self, source: str) -> list[base.Item]:
    """Reads VLMEvalKit's tsv, or the original `Questions.csv` with `MMVP Images/<index>.jpg`."""
    path = records.find_file(records.existing(source, "questions of MMVP"), self.files, "the questions")
    if path.suffix != ".csv":
      return super().read_items(str(path))
    items = []
    for number, row in enumerate(records.csv_rows(path), 2):
      index, options = row.get("Index") or row.get("lndex"), _OPTIONS.search(row.get("Options") or "")
      if not index or not options or not row.get("Question") or not row.get("Correct Answer"):
        raise ValueError(f"{path.name}, row {number}: malformed: {row}")
      record = {"index": index, "question": row["Question"], "A": options[1].strip(),
                "B": options[2].strip(), "answer": row["Correct Answer"].strip().strip("()").upper()}
      items.append(base.Item(index, self.prompt(record, 1), "all",
                             images=(str(path.parent / "MMVP Images" / f"{index}.jpg"),), record=record))
    records.check_unique(path, [item.id for item in items])
    return items

  def units(self, items):
    return [items[i:i + 2] for i in range(0, len(items), 2)]

  def score(self, hits, account, rules, details):
    by_pair: dict[int, list[multiple_choice.Hit]] = {}
    if rules == "strict":  # absent rows stand at the end: bring each next to its partner
      hits = sorted(hits, key=lambda h: int(h.id) if h.id.isdecimal() else 0)
    for position, hit in enumerate(hits):
      by_pair.setdefault(position // 2, []).append(hit)
    if hits and len(by_pair[len(by_pair) - 1]) == 1:
      account.absent("questions", [f"the partner of {hits[-1].id}"])
    pairs = [len(found) == 2 and all(h.hit for h in found) for found in by_pair.values()]
    internvl = [[_is_right_for_internvl(h.row) for h in found] for found in by_pair.values()]
    score = base.mean(map(float, pairs)) if pairs else None
    return base.Score(
        score, {}, len(hits), account.missing, account.malformed, rules,
        variants={"pairs": score, "single": multiple_choice.accuracy(hits),
                  "pairs internvl": base.mean(float(len(p) == 2 and all(p)) for p in internvl)},
        published_variant="pairs", messages=tuple(account.messages),
        values=tuple(base.Value(str(i), "all", float(right)) for i, right in enumerate(pairs)),
        details={**details, "pairs": len(pairs)})


def _is_right_for_internvl(row: tables.Row) -> bool:
  letter = internvl_letter(row.get("prediction") or "", vlmeval.choices(row))
  return letter is not None and letter == row.get("answer")


def internvl_letter(answer: str, options: Mapping[str, str]) -> str | None:
  """Reads an answer as InternVL's script; None for an empty one, at which it stops.

  One character is the answer; else its first character, if that is an option's letter; else the first
  option whose text is contained; else the answer itself.
  """
  answer = answer.strip()
  if not answer:
    return None
  if len(answer) == 1 or answer[0] in options:
    return answer[0]
  return next((letter for letter, text in options.items() if text in answer), answer)
