"""WISE: 1000 prompts that need world knowledge, judged by a chat model (arXiv 2503.07265).

Three benchmarks share the name. The legacy one is the paper's: three axes of 0 to 2, judge
gpt-4o-2024-05-13. Its rewritten prompts (`*_rewrite.json`) name what the plain ones describe, e.g.
"Carnation", so that no knowledge of the world is needed. The Verified one (the repository's default since
April 2026) has other prompts, other ranges of ids, another judge and one axis of 0 or 1. An id means
another prompt in each.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import re
from typing import Any

from etils import epath

from unilip_jax.common import atomic_io, paths
from unilip_jax.scores import base, records, requests, scripts

_IDS = range(1, 1001)
_AXES = ("consistency", "realism", "aesthetic_quality")
_AXIS = re.compile(
    r"\*{0,2}(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*:?\s*(\d)", re.IGNORECASE)
_VERIFIED = re.compile(r"\*{0,2}\bScore\b\*{0,2}\s*:?\s*([01])\b", re.IGNORECASE)
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
# {ending of the prompts' file names: benchmark}; plain names are those of "wise"
_EDITIONS = {"_verified": "wise-verified", "_rewrite": "wise-rewrite"}
_RECORD = {"Prompt": str, "Explanation": str, "Subcategory": str, "prompt_id": int}


class Wise(base.Benchmark):
  """WISE as in the paper and in all published tables of 2025."""

  name = "wise"
  kind = "generation"
  revision = "PKU-YuanGroup/WISE eb511744 (2026-04-25), WISE_legacy"
  published = (
      base.Published("UniLIP-1B", 0.56, "UniLIP README"),
      base.Published("UniLIP-3B", 0.63, "UniLIP README"),
      base.Published("BAGEL", 0.52, "BAGEL README; WISE legacy board", "0.70 with thinking"),
      base.Published("UniWorld-V1", 0.55, "WISE legacy board"),
      base.Published("BLIP3-o-4B", 0.50, "UniLIP README"),
      base.Published("FLUX.1-dev", 0.50, "WISE legacy board"),
      base.Published("GPT-4o", 0.80, "WISE legacy board"))
  judge = requests.Preset(
      "gpt-4o-2024-05-13", tries=3,
      note="BAGEL used gpt-4o-2024-11-20; a floating gpt-4o gives .54 where gpt-4o-2024-05-13 gives .62")
  judge_files = "WISE's own judge script (WISE_legacy/gpt_eval.py of github.com/PKU-YuanGroup/WISE)"
  ranges: Mapping[str, range] = {
      "CULTURE": range(1, 401), "TIME": range(401, 568), "SPACE": range(568, 701),
      "BIOLOGY": range(701, 801), "PHYSICS": range(801, 901), "CHEMISTRY": range(901, 1001)}
  weights: Mapping[str, float] = {
      "CULTURE": 0.4, "TIME": 0.167, "SPACE": 0.133, "BIOLOGY": 0.1, "PHYSICS": 0.1, "CHEMISTRY": 0.1}
  stem = ""  # suffix of the prompts' file names

  def read_items(self, source: str) -> list[base.Item]:
    """Reads the three prompt files of a folder, or one file."""
    path = records.existing(source, "WISE prompts")
    files = [path]
    if path.is_dir():
      files = [path / f"{name}{self.stem}.json" for name in _FILES]
      if absent := [f.name for f in files if not f.exists()]:
        raise FileNotFoundError(f"{path} lacks {', '.join(absent)}: the prompts of {self.name}")
    else:
      self._check_edition(path)
    items = []
    for file in files:
      found = records.read_items_json(file)
      if not isinstance(found, list) or not found:
        raise ValueError(f"{file} is no list of prompts of {self.name}")
      for number, record in enumerate(found):
        where = f"{file.name}, record {number}"
        records.require(record, _RECORD, where)
        category = self.category(record["prompt_id"])
        if category is None:
          raise ValueError(f"{where}: prompt_id {record['prompt_id']} is outside 1 to 1000")
        items.append(base.Item(str(record["prompt_id"]), record["Prompt"], category, record=record))
    records.check_names(source, [(item.id, item.prompt) for item in items])
    return items

  def _check_edition(self, file: epath.Path) -> None:
    """Raises ValueError for a file of another edition's prompts, by its name."""
    plain = "wise" if file.stem in _FILES else self.name
    edition = next((name for ending, name in _EDITIONS.items() if file.stem.endswith(ending)), plain)
    if edition != self.name:
      raise ValueError(f"{file.name} holds the prompts of {edition}, not of {self.name}: their ids and "
                       "scores are never mixed")

  def category(self, prompt_id: int) -> str | None:
    """Category of a prompt; None outside of 1 to 1000."""
    return next((name for name, ids in self.ranges.items() if prompt_id in ids), None)

  def output_path(self, item: base.Item, k: int) -> str:
    if k:
      raise ValueError(f"{self.name} has one image a prompt, not image {k}")
    return f"{item.id}.png"

  def read_prompts(self, path: str) -> scripts.Script:
    """Reads the official judge script."""
    script = scripts.Script(path, self.judge_files)
    script.messages(dict.fromkeys(_RECORD, ""))
    return script

  def judge_requests(self, item, images, prompts, attempt=0):
    del attempt
    return [dataclasses.replace(
        requests.from_chat(prompts.messages(dict(item.record)), images), **self._parameters())]

  def _parameters(self) -> dict[str, Any]:
    return {"temperature": 0.0, "max_tokens": 2000}

  def parse(self, answers):
    scores = parse_axes(answers[""])
    return scores if len(scores) == len(_AXES) else None

  def write_judgements(
      self, folder: str, items: Sequence[base.Item], judgements: Iterable[base.Judgement]) -> None:
    """Writes `<file>_full_results.json` and `<file>_scores_results.jsonl` for the three prompt files."""
    out = paths.path(folder)
    out.mkdir(parents=True, exist_ok=True)
    by_id = {j.item_id: j for j in judgements}
    for name, categories in zip(_FILES, (("CULTURE",), ("TIME", "SPACE"), ())):
      chosen = sorted((i for i in items if i.category in (categories or ("BIOLOGY", "PHYSICS", "CHEMISTRY"))
                       and i.id in by_id), key=lambda i: int(i.id))
      full = [{"prompt_id": int(i.id), "prompt": i.record["Prompt"], "key": i.record["Explanation"],
               "image_path": f"{i.id}.png", "evaluation": by_id[i.id].answers.get("")} for i in chosen]
      lines = [json.dumps({"prompt_id": int(i.id), "Subcategory": i.record["Subcategory"],
                           **by_id[i.id].scores}, ensure_ascii=False)
               for i in chosen if by_id[i.id].scores is not None]
      atomic_io.write(out / f"{name}_full_results.json",
                      json.dumps(full, ensure_ascii=False, indent=2).encode())
      atomic_io.write(out / f"{name}_scores_results.jsonl", "".join(f"{x}\n" for x in lines).encode())

  def value(self, line: Mapping[str, Any]) -> float | str:
    """Score of a line of the scores file, or why it is malformed."""
    axes = [line.get(axis) for axis in _AXES]
    if not all(isinstance(x, int | float) for x in axes):
      return "one or more score values are not numeric"
    consistency, realism, aesthetic = axes
    return (0.7 * consistency + 0.2 * realism + 0.1 * aesthetic) / 2

  def overall(self, categories):
    return sum(weight * base.mean(categories.get(name, ())) for name, weight in self.weights.items())

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a folder with the score files (`*.jsonl`), or one of them.

    As the official program, lines that are no JSON or have no whole-number id, no numeric score or an
    id outside of 1 to 1000 are skipped; an id that occurs twice counts twice; without every id present
    there is no overall score. Strict rules let skipped lines (of a known category) and absent ids
    count 0.
    """
    base.check_rules(rules)
    account = records.Account()
    lines = [line for file in _score_files(source) for line in self._read(file, account)]
    values = [(i, c, v) for i, c, v, _ in lines if c is not None and v is not None]
    account.doubled("prompt_id", [i for i, _, _, _ in lines], "every line counts")
    present = {i for i, _, _, _ in lines}
    expected = [int(i.id) for i in self.read_items(items)] if items else list(_IDS)
    absent = [i for i in expected if i not in present]
    account.absent("prompt_ids", absent)
    if rules == "strict":
      values += [(i, c, 0.0) for i, c, v, _ in lines if c is not None and v is None]
      values += [(i, self.category(i), 0.0) for i in absent]
    by_category = {name: [v for _, c, v in values if c == name] for name in self.ranges}
    categories = {name: base.mean(v) for name, v in by_category.items() if v}
    complete = len(categories) == len(self.ranges) and (rules == "strict" or not absent)
    if not complete:
      account.note("no overall score: the official program needs every prompt_id and every category")
    weighted = self.overall(by_category) if complete else None
    return base.Score(
        weighted, categories, len(values), account.missing, account.malformed, rules,
        variants={"weighted": weighted,
                  "unweighted": base.mean(categories.values()) if complete else None,
                  **self._other_variants(lines, complete)},
        published_variant="weighted", messages=tuple(account.messages),
        values=tuple(base.Value(str(i), c, v) for i, c, v in values),
        details={"lines by category": {c: len(v) for c, v in by_category.items()}})

  def _read(
      self, file: epath.Path, account: records.Account
  ) -> list[tuple[int, str | None, float | None, Any]]:
    """Reads a score file: (prompt_id, category, value, Subcategory); None where malformed."""
    lines = []
    for number, text in records.json_lines(file):
      where = f"{file.name}, line {number}"
      try:
        line = records.parse_json(text)
      except ValueError:
        account.skip(where, "not JSON")
        continue
      if not isinstance(line, dict):
        account.skip(where, "not an object: the official program gives up the complete file")
        return []
      prompt_id = line.get("prompt_id")
      if not isinstance(prompt_id, int):
        account.skip(where, f"prompt_id is {prompt_id!r}, not a whole number")
        continue
      prompt_id = int(prompt_id)
      value, category = self.value(line), self.category(prompt_id)
      if isinstance(value, str):
        account.skip(where, value)
        value = None
      elif category is None:
        account.skip(where, f"prompt_id {prompt_id} is outside 1 to 1000")
      else:
        account.check_range(where, value, 0, 1)
      lines.append((prompt_id, category, value, line.get("Subcategory")))
    return lines

  def _other_variants(self, lines: Sequence[tuple], complete: bool) -> dict[str, float | None]:
    """BAGEL's script: time by Subcategory, no weights, nothing below 400, 300 and 300 lines."""
    culture, space_time, science = (
        [line for line in lines if line[0] in ids and line[2] is not None]
        for ids in (range(1, 401), range(401, 701), range(701, 1001)))
    if not complete or len(culture) < 400 or len(space_time) < 300 or len(science) < 300:
      return {"bagel": None}
    time = [v for _, _, v, sub in space_time if sub in ("Longitudinal time", "Horizontal time")]
    space = [v for _, _, v, sub in space_time if sub not in ("Longitudinal time", "Horizontal time")]
    groups = [[v for _, _, v, _ in culture], time, space]
    groups += [[v for _, c, v, _ in science if c == name] for name in ("BIOLOGY", "PHYSICS", "CHEMISTRY")]
    return {"bagel": base.mean(base.mean(g) for g in groups if g)}


class WiseRewritten(Wise):
  """WISE legacy with rewritten prompts, which the judge sees too: never comparable with plain ones."""

  name = "wise-rewrite"
  revision = "PKU-YuanGroup/WISE eb511744 (2026-04-25), WISE_legacy, rewritten prompts"
  published = ()
  stem = "_rewrite"


class WiseVerified(Wise):
  """WISE Verified: other prompts, one binary score, another judge."""

  name = "wise-verified"
  revision = "PKU-YuanGroup/WISE eb511744 (2026-04-25), data_verified"
  published = (
      base.Published("BAGEL", 0.352, "WISE Verified board", "0.628 with thinking"),
      base.Published("UniWorld-V1", 0.426, "WISE Verified board"),
      base.Published("Qwen-Image", 0.510, "WISE Verified board"))
  judge = requests.Preset("Qwen3.5-35B-A3B", tries=3, note="served by vLLM, thinking off")
  judge_files = "vllm_eval.py of github.com/PKU-YuanGroup/WISE, the judge script for Verified"
  ranges = {  # noqa: RUF012
      "CULTURE": range(1, 401), "TIME": range(401, 521), "SPACE": range(521, 641),
      "BIOLOGY": range(641, 761), "PHYSICS": range(761, 881), "CHEMISTRY": range(881, 1001)}
  weights = {"CULTURE": 0.4, **dict.fromkeys(  # noqa: RUF012
      ("TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY"), 0.12)}
  stem = "_verified"

  def _parameters(self):
    return {"temperature": 0.0, "max_tokens": 500,
            "extra": {"chat_template_kwargs": {"enable_thinking": False}}}

  def parse(self, answers):
    score = parse_binary(answers[""])
    return None if score is None else {"score": score}

  def value(self, line):
    score = line.get("score")
    if not isinstance(score, int | float):
      return "no numeric score"
    return float(score) if score in (0, 1) else f"score={score} is neither 0 nor 1"

  def _other_variants(self, lines, complete):
    return {}


def parse_axes(answer: str) -> dict[str, float]:
  """Reads the three scores of a legacy answer by the official rule; absent axes are left out.

  One digit after the axis' name: "1.5" and "12" read as 1, bold around the colon is not understood, a
  repetition overwrites. Without any name, the first three lines of a single 0, 1 or 2 count in order.
  """
  scores = {name.lower().replace(" ", "_"): float(digit) for name, digit in _AXIS.findall(answer)}
  if scores:
    return scores
  digits = [line.strip() for line in answer.splitlines() if line.strip() in ("0", "1", "2")]
  return dict(zip(_AXES, map(float, digits))) if len(digits) >= len(_AXES) else {}


def parse_binary(answer: str) -> float | None:
  """Reads the score of a Verified answer by the official rule; None if malformed."""
  answer = _THINKING.sub("", answer)
  if match := _VERIFIED.search(answer):
    return float(match[1])
  digits = [line.strip() for line in answer.splitlines() if line.strip() in ("0", "1")]
  return float(digits[0]) if len(digits) == 1 else None


def _score_files(source: str) -> list[epath.Path]:
  path = records.existing(source, "score files of WISE")
  if not path.is_dir():
    return [path]
  files = sorted((f for f in path.iterdir() if f.suffix == ".jsonl"), key=lambda f: f.name)
  if not files:
    raise FileNotFoundError(f"{path} holds no *.jsonl: the score files of WISE, one for each prompt file")
  if len(files) > len(_FILES):
    raise ValueError(f"{path} holds {len(files)} score files, at most {len(_FILES)} belong together: "
                     f"{', '.join(f.name for f in files)}; put those of one model and edition in a folder")
  return files
