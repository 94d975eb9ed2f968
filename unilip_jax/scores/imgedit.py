"""ImgEdit-Bench: 737 edits of nine types, judged on three axes of 1 to 5 (arXiv 2505.20275).

The official scripts turn `result.json` (key: raw answer) into a mean for each type and print no overall.
Three overall rules are in use; all are computed. The hard suite (UGE) asks for one number.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import re
from typing import Any

from etils import epath

from unilip_jax.common import atomic_io, paths
from unilip_jax.scores import base, image_files, records, requests, scripts

TYPES = ("background", "adjust", "style", "extract", "remove", "add", "replace", "compose", "action")
_METADATA = ("basic_edit.json", "singleturn.json")
_AFTER_COLON = re.compile(r":\s*(\d+)")
_AT_END = re.compile(r"(\d+)\s*$")
_DIGITS = 15  # of a number


class ImgEdit(base.Benchmark):
  """The basic suite ("singleturn")."""

  name = "imgedit"
  kind = "editing"
  revision = "PKU-YuanGroup/ImgEdit 547185d1 (2025-09-07), Basic"
  published = (
      base.Published("UniLIP-1B", 3.81, "UniLIP README", "judge not stated"),
      base.Published("UniLIP-3B", 3.94, "UniLIP README", "judge not stated"),
      base.Published("BAGEL", 3.42, "ImgEdit leaderboard, July 2025", "GPT-4.1; 3.20 in UniLIP's table"),
      base.Published("BAGEL", 3.28, "BAGEL EVAL.md", "gpt-4o-2024-11-20, mean over images"),
      base.Published("UniWorld-V1", 3.26, "ImgEdit leaderboard, July 2025", "GPT-4.1"),
      base.Published("OmniGen2", 3.44, "ImgEdit leaderboard, July 2025", "GPT-4.1"),
      base.Published("FLUX Kontext-dev", 3.71, "ImgEdit leaderboard, July 2025", "GPT-4.1"),
      base.Published("GPT-4o", 4.20, "ImgEdit leaderboard, July 2025", "GPT-4.1"))
  judge = requests.Preset(
      "gpt-4.1", note="the first leaderboard used gpt-4o-2024-08-06, BAGEL gpt-4o-2024-11-20; "
      "numbers of different judges are not comparable")
  judge_files = "judge_prompt.json of Benchmark.tar, or prompts.json of the code (edit type: prompt)"
  metadata = _METADATA

  def read_items(self, source: str) -> list[base.Item]:
    """Reads `singleturn.json`; images are looked up relative to its folder."""
    path = records.find_file(records.existing(source, "ImgEdit metadata"), self.metadata,
                             f"the edits of {self.name}")
    items = []
    for key, record in _as_object(path, records.read_items_json(path)).items():
      records.require(record, self._fields(), f"{path.name}, key {key}")
      items.append(base.Item(key, record["prompt"], record.get("edit_type", "hard"),
                             images=(str(path.parent / record["id"]),), record=record))
      if items[-1].category not in (*TYPES, "hard"):
        raise ValueError(f"{path.name}, key {key}: malformed: edit_type is {items[-1].category!r}")
    records.check_names(source, [(item.id, item.prompt) for item in items])
    return items

  def _fields(self) -> dict[str, type]:
    return {"id": str, "prompt": str, "edit_type": str}

  def output_path(self, item: base.Item, k: int) -> str:
    if k:
      raise ValueError(f"{self.name} has one image an edit, not image {k}")
    return f"{item.id}.png"

  def read_prompts(self, path: str) -> dict[str, str]:
    """Reads {edit type: prompt with <edit_prompt>}."""
    file = records.find_file(records.existing(path, self.judge_files),
                             ("judge_prompt.json", "prompts.json"), self.judge_files)
    prompts = _read_object(file, records.Account())
    if absent := [t for t in TYPES if "<edit_prompt>" not in str(prompts.get(t))]:
      raise ValueError(f"{file} has no prompt with <edit_prompt> for {', '.join(absent)}; "
                       f"expected {self.judge_files}")
    return prompts

  def judge_requests(self, item, images, prompts, attempt=0):
    del attempt
    prompt = self._prompt(item, prompts).replace("<edit_prompt>", item.prompt)
    original, (edited,) = image_files.read_input(item), images
    parts = (prompt, requests.Image(original), requests.Image(edited))
    return [requests.Request((requests.Message("user", parts),))]

  def _prompt(self, item: base.Item, prompts: Mapping[str, str]) -> str:
    return prompts[item.category]

  def parse(self, answers):
    found = parse_lines(answers[""])
    return {"score": round(base.mean(found), 2)} if found else None

  def write_judgements(
      self, folder: str, items: Sequence[base.Item], judgements: Iterable[base.Judgement]) -> None:
    """Writes `result.json`; failed calls are left out, since the official script stops at them."""
    out = paths.path(folder)
    out.mkdir(parents=True, exist_ok=True)
    answers = {j.item_id: j.answers.get("") for j in judgements}
    result = {i.id: answers[i.id] for i in items if answers.get(i.id) is not None}
    atomic_io.write(out / "result.json", json.dumps(result, indent=4).encode())

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a folder with `result.json` and the metadata (`basic_edit.json` or `singleturn.json`).

    An answer's score is the mean of whatever numbers stand alone after ": " in a line, rounded to 2
    decimals; a type's is the mean of these, rounded. Answers without a number are dropped, and so are keys
    that the metadata lacks. Strict rules let dropped and absent keys count 0.
    """
    base.check_rules(rules)
    account = records.Account()
    results, metadata = self._read(source, items, account)
    scores: dict[str, float] = {}
    lmms: list[float] = []
    for key, answer in results.items():
      if key in metadata:
        lmms.append(base.mean(parse_last_numbers(answer)) if isinstance(answer, str) else 0.0)
        found = self._score(key, answer, account)
      else:
        account.note(f"result.json, key {key} is not in the metadata and counts in no type")
        found = self._score(key, answer, records.Account())
      if found is not None:
        scores[key] = found
    absent = [k for k in metadata if k not in results]
    account.absent("edits", absent)
    if rules == "strict":
      scores |= {k: 0.0 for k in metadata if k not in scores}
    by_type: dict[str, list[tuple[str, float]]] = {}
    for key, score in scores.items():
      if key in metadata:
        by_type.setdefault(metadata[key]["edit_type"], []).append((key, score))
    types = {t: round(base.mean(s for _, s in v), 2) for t, v in by_type.items()}
    pooled = [s for v in by_type.values() for _, s in v]
    macro = base.mean(types.values()) if types else None
    return base.Score(
        macro, types, len(pooled), account.missing, account.malformed, rules,
        variants={"macro": macro, "micro": base.mean(pooled),
                  "micro_bagel": round(base.mean(scores.values()), 2) if scores else None,
                  "micro_lmms_eval": sum(lmms) / (len(lmms) + len(absent)) if lmms else None},
        published_variant="macro", messages=tuple(account.messages),
        values=tuple(base.Value(k, t, s) for t, v in by_type.items() for k, s in v),
        details={"edits by type": {t: len(v) for t, v in by_type.items()}})

  def overall(self, categories):
    return base.mean([base.mean(v) for v in categories.values() if v])

  def _score(self, key: str, answer: Any, account: records.Account) -> float | None:
    """Score of an answer; None if it has no number."""
    if not isinstance(answer, str):
      account.skip(f"result.json, key {key}",
                   f"{answer!r}: a failed call (the official script stops at it)")
      return None
    found = parse_lines(answer)
    if not found:
      account.skip(f"result.json, key {key}", "no score in the answer")
      return None
    account.check_range(f"result.json, key {key}", base.mean(found), 1, 5)
    return round(base.mean(found), 2)

  def _read(
      self, source: str, items: str | None, account: records.Account
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = records.existing(source, "results of ImgEdit")
    results = _read_object(records.find_file(folder, ("result.json",), "the judge's answers"), account)
    place = records.existing(items, "ImgEdit metadata") if items else (
        folder if folder.is_dir() else folder.parent)
    file = records.find_file(place, self.metadata, "the edits' types; name the file with --items")
    metadata = {}
    for key, record in _read_object(file, account).items():
      if isinstance(record, dict) and isinstance(record.get("edit_type"), str):
        metadata[key] = record
      else:
        account.skip(f"{file.name}, key {key}", "no edit_type")
    return results, metadata


class ImgEditHard(ImgEdit):
  """The hard suite (UGE): 47 edits, one score each."""

  name = "imgedit-hard"
  revision = "PKU-YuanGroup/ImgEdit 547185d1 (2025-09-07), UGE"
  published = ()
  judge_files = "UGE_bench.py of ImgEdit's code (Benchmark/UGE)"
  metadata = ("UGE_edit.json",)

  def _fields(self):
    return {"id": str, "prompt": str}

  def read_prompts(self, path: str) -> str:
    """Reads the prompt from the user's copy of `UGE_bench.py`."""
    return scripts.Script(path, self.judge_files).constant("prompt")

  def _prompt(self, item, prompts):
    return prompts

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores `result.json`: the mean over all answers with a number, each and the mean rounded."""
    base.check_rules(rules)
    account = records.Account()
    folder = records.existing(source, "results of ImgEdit's hard suite")
    file = records.find_file(folder, ("result.json", "uge_result.json"), "the judge's answers")
    results = _read_object(file, account)
    scores = {k: s for k, a in results.items() if (s := self._score(k, a, account)) is not None}
    expected = {item.id for item in self.read_items(items)} if items else results.keys()
    account.absent("edits", [k for k in expected if k not in results])
    if rules == "strict":
      scores |= {k: 0.0 for k in [*expected, *results] if k not in scores}
    score = round(base.mean(scores.values()), 2) if scores else None
    return base.Score(
        score, {}, len(scores), account.missing, account.malformed, rules,
        variants={"mean": score}, published_variant="mean", messages=tuple(account.messages),
        values=tuple(base.Value(k, "hard", s) for k, s in scores.items()))


def parse_lines(answer: str) -> list[int]:
  """Reads an answer by the official rule: lines of two parts around ": ", the second all digits.

  "5/5", "5.", "4.5", ":5" and bold that encloses the colon are lost; any further number counts too, but one
  of more digits than a float holds, or in superscript, at which the official script stops.
  """
  found = []
  for line in answer.splitlines():
    parts = line.strip().split(": ")
    if len(parts) == 2 and parts[1].isdecimal() and len(parts[1]) <= _DIGITS:
      found.append(int(parts[1]))
  return found


def parse_last_numbers(answer: str) -> list[float]:
  """Reads an answer as lmms-eval does.

  The last three numbers after a colon, else the last three at the end of a line, else three zeros.
  """
  found = _AFTER_COLON.findall(answer)
  if len(found) < 3:
    ends = [_AT_END.search(line.strip()) for line in answer.strip().split("\n")]
    found = [match[1] for match in ends if match]
  return [float(x) for x in found[-3:]] if len(found) >= 3 else [0.0, 0.0, 0.0]


def _read_object(path: epath.Path, account: records.Account) -> dict[str, Any]:
  return _as_object(path, records.read_json(path, account))


def _as_object(path: epath.Path, value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a {type(value).__name__}; expected an object with one entry an edit")
  return value
