"""GenEval: 553 prompts about objects, counts, colours and positions, scored by a detector.

arXiv 2310.11513. `results.jsonl` of the official evaluator is aggregated as its `summary_scores.py` does:
the score is the mean of the means of six tags. Detections of another detector go through the same rules
under another name.
"""

from collections.abc import Iterator
import json
from typing import Any

from etils import epath
import numpy as np
from PIL import Image

from unilip_jax.scores import base, geneval_rules, records

_MAX_FOLDERS, _DIGITS = 100_000, 15
_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_FIELDS = {"tag": str, "include": list, "prompt": str}


class GenEval(base.Benchmark):
  """GenEval with its short prompts; the official detector writes `results.jsonl`."""

  name = "geneval"
  kind = "generation"
  revision = "djghosh13/geneval af4902f2 (2025-03-03)"
  images_per_item = 4
  published = (
      base.Published("UniLIP-1B", 0.88, "UniLIP README", "plain prompts"),
      base.Published("UniLIP-3B", 0.90, "UniLIP README", "plain prompts"),
      base.Published("BAGEL", 0.82, "BAGEL README", "plain prompts"),
      base.Published("BAGEL", 0.88, "BAGEL README", "rewritten prompts"),
      base.Published("BLIP3-o-4B", 0.81, "UniLIP README"),
      base.Published("SDXL", 0.55, "GenEval README"),
      base.Published("IF-XL", 0.61, "GenEval README"),
      base.Published("SD 1.5", 0.43, "GenEval README"))

  def read_items(self, source: str) -> list[base.Item]:
    """Reads `evaluation_metadata.jsonl` or UniLIP's `geneval_prompt.jsonl`."""
    path = records.find_file(
        records.existing(source, "GenEval prompts"),
        ("evaluation_metadata.jsonl", "geneval_prompt.jsonl", "evaluation_metadata_long.jsonl"),
        "the prompts of GenEval")
    items = []
    for number, line in records.json_lines(path):
      where = f"{path.name}, line {number}"
      try:
        record = records.parse_json(line)
      except ValueError as error:
        raise ValueError(f"{where}: malformed: {error}") from error
      records.require(record, _FIELDS, where)
      if record["tag"] not in _TAGS:
        raise ValueError(f"{where}: malformed: 'tag' is {record['tag']!r}")
      geneval_rules.check(record, where)
      index = record.get("index", f"{number - 1:05d}")
      if not isinstance(index, str):
        raise ValueError(f"{where}: malformed: 'index' is {index!r}")
      items.append(base.Item(index, self._prompt(record), record["tag"], record=record))
    records.check_names(path, [(item.id, item.prompt) for item in items])
    return items

  def _prompt(self, record: dict[str, Any]) -> str:
    return record["prompt"]

  def output_path(self, item: base.Item, k: int) -> str:
    return f"{item.id}/samples/{k:05d}.png"

  def side_files(self, item: base.Item) -> dict[str, bytes]:
    return {f"{item.id}/metadata.jsonl": json.dumps(dict(item.record)).encode()}

  def overall(self, categories):
    return base.mean([base.mean(values) for values in categories.values() if values])

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores `results.jsonl`, one line an image.

    The official summary drops absent images and fails on a malformed line; here that line is skipped and
    counted. How many images a prompt should have is the largest number found; `items` names the prompts.
    """
    base.check_rules(rules)
    path = records.find_file(
        records.existing(source, "results of GenEval"), ("results.jsonl",), "the evaluator's results")
    account = records.Account()
    lines = list(_lines(path, account))
    account.doubled("the image", [f for f, _ in lines], "every line counts")
    missing = _missing(
        lines, self.read_items(items) if items else None, self.images_per_item, account)
    prompts = {_folder(name): line["metadata"] for name, line in lines}
    if rules == "strict":
      lines += [(name, {"tag": tag, "correct": False,
                        "metadata": prompts.get(_folder(name), _folder(name))}) for name, tag in missing]
    by_tag: dict[str, list[float]] = {}
    by_prompt: dict[str, bool] = {}
    for _, line in lines:
      right = float(line["correct"] or 0)
      by_tag.setdefault(line["tag"], []).append(right)
      by_prompt[line["metadata"]] = by_prompt.get(line["metadata"], False) or bool(right)
    score = float(np.mean([np.mean(v) for v in by_tag.values()])) if by_tag else None
    right = [v for values in by_tag.values() for v in values]
    return base.Score(
        score, {tag: base.mean(v) for tag, v in by_tag.items()}, len(lines), account.missing,
        account.malformed, rules,
        variants={"mean of tags": score, "correct images": base.mean(right),
                  "correct prompts": base.mean(map(float, by_prompt.values()))},
        published_variant="mean of tags", messages=tuple(account.messages),
        values=tuple(base.Value(_folder(name), line["tag"], float(line["correct"] or 0))
                     for name, line in lines),
        details={"images": len(lines), "prompts": len(by_prompt),
                 "correct": {tag: int(sum(v)) for tag, v in by_tag.items()},
                 "images by tag": {tag: len(v) for tag, v in by_tag.items()}})


class GenEvalLong(GenEval):
  """GenEval with the long prompts: `detailed_caption` of UniLIP's file, or `prompt` of a rewritten file."""

  name = "geneval-long"
  published = (base.Published("BAGEL", 0.88, "BAGEL README", "evaluation_metadata_long.jsonl"),)

  def _prompt(self, record):
    return record.get("detailed_caption") or record["prompt"]


class GenEvalHf(GenEval):
  """GenEval's rules on detections of transformers' Mask2Former and CLIP: not comparable with GenEval."""

  name = "geneval-hf"
  published = ()


def judge_image(
    name: str, image: Image.Image, record: dict[str, Any], detector: geneval_rules.Detector,
    options: geneval_rules.Options) -> dict[str, Any]:
  """Returns the line of `results.jsonl` for one image."""
  found, masks = {}, {}
  for class_name, (boxes, instance_masks) in detector.detect(image).items():
    if kept := geneval_rules.keep(boxes, record["tag"], options):
      found[class_name] = [np.asarray(boxes[i], np.float32) for i in kept]
      masks[class_name] = [None if instance_masks is None else instance_masks[i] for i in kept]

  def classify(class_name, boxes):
    crops = [geneval_rules.color_crop(image, box, mask, options)
             for box, mask in zip(boxes, masks[class_name])]
    return detector.colors(crops, class_name)

  correct, reason = geneval_rules.evaluate(found, record, classify, options)
  return {"filename": name, "tag": record["tag"], "prompt": record["prompt"], "correct": correct,
          "reason": reason, "metadata": json.dumps(record),
          "details": json.dumps({c: [b.tolist() for b in boxes] for c, boxes in found.items()})}


def _lines(path: epath.Path, account: records.Account) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (file name, line) of each readable line."""
  for number, text in records.json_lines(path):
    if not text.strip():
      continue
    where = f"{path.name}, line {number}"
    try:
      line = records.parse_json(text)
    except ValueError:
      account.skip(where, "not JSON (the official summary stops at it)")
      continue
    if not isinstance(line, dict) or not isinstance(line.get("tag"), str):
      account.skip(where, "no tag")
    elif line.get("correct") not in (True, False):
      account.skip(where, f"'correct' is {line.get('correct')!r}")
    else:
      line["metadata"] = str(line.get("metadata", line.get("prompt")))
      yield str(line.get("filename", where)), line


def _folder(filename: str) -> str:
  parts = filename.replace("\\", "/").split("/")
  return parts[-3] if len(parts) >= 3 else filename


def _missing(
    lines: list[tuple[str, dict[str, Any]]], items: list[base.Item] | None, images_per_item: int,
    account: records.Account) -> list[tuple[str, str]]:
  """Finds images that are absent: (name, tag) of each; `images_per_item` counts where none is there."""
  found: dict[str, set[str]] = {}
  tags: dict[str, str] = {}
  for filename, line in lines:
    found.setdefault(_folder(filename), set()).add(filename.replace("\\", "/").split("/")[-1])
    tags.setdefault(_folder(filename), line["tag"])
  per_prompt = max((len(names) for names in found.values()), default=0)
  if items is not None:
    tags = {item.id: item.category for item in items}
    per_prompt = per_prompt or images_per_item
    if unknown := sorted(found.keys() - tags.keys()):
      account.note(f"{len(unknown)} prompts are not among the items: {records.enumerate_names(unknown)}")
  else:
    _fill_gaps(tags, account)
  absent = []
  for folder, tag in sorted(tags.items()):
    names = found.get(folder, set())
    numbers = {int(n.removesuffix(".png")) for n in names if n.removesuffix(".png").isdecimal()}
    free = [k for k in range(per_prompt) if k not in numbers]
    absent += [(f"{folder}/samples/{k:05d}.png", tag) for k in free[:per_prompt - len(names)]]
  account.absent("images", [name for name, _ in absent])
  return absent


def _fill_gaps(tags: dict[str, str], account: records.Account) -> None:
  """Adds the folders that are absent between the first and last one, with the tag of the one before."""
  folders = sorted((name for name in tags if name.isdecimal() and len(name) <= _DIGITS), key=int)
  if not folders or int(folders[-1]) >= _MAX_FOLDERS:
    return
  width, tag = len(folders[-1]), tags[folders[0]]
  gaps = []
  for index in range(int(folders[0]), int(folders[-1]) + 1):
    name = f"{index:0{width}d}"
    if name in tags:
      tag = tags[name]
    else:
      gaps.append(name)
      tags[name] = tag
  if gaps:
    account.note(f"no image of prompts {records.enumerate_names(gaps)}: their tag is taken from the prompt "
                 "before; pass --items to count exactly")
