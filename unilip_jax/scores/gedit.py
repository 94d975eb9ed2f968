"""GEdit-Bench: real user edits in eleven groups, judged by VIEScore (arXiv 2504.17761).

The official statistics read one CSV file a group. O of a group is the mean of the roots of each image's
SC·PQ, and the score the mean of eleven groups. Rows are in English ("en") or Chinese ("cn").
"""

from collections.abc import Iterable, Iterator, Sequence
import csv
import io
import math
from typing import Any

from etils import epath
from PIL import Image

from unilip_jax.common import atomic_io, paths, png
from unilip_jax.scores import base, image_files, records, requests, scripts, viescore

GROUPS = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change",
    "subject-add", "subject-remove", "subject-replace", "text_change", "tone_transfer")
_SUFFIX = "_gpt_score.csv"
_COLUMNS = ("source_image", "edited_image", "instruction", "sementics_score", "quality_score",
            "intersection_exist", "instruction_language")
_FIELDS = {"task_type": str, "key": str, "instruction": str, "instruction_language": str,
           "input_image": (str, bytes)}
_LANGUAGES = ("en", "cn")
_MEASURES = ("SC", "PQ", "O")


class GEdit(base.Benchmark):
  """The English instructions (GEdit-Bench-EN)."""

  name = "gedit"
  kind = "editing"
  revision = "stepfun-ai/Step1X-Edit 570eba6e (2025-05-22), GEdit-Bench"
  language = "en"
  published = (
      base.Published("BAGEL", 6.52, "BAGEL README", "SC 7.36, PQ 6.83; a user measured 6.125"),
      base.Published("Step1X-Edit", 6.70, "BAGEL README", "SC 7.09, PQ 6.76"),
      base.Published("GPT-4o", 7.53, "BAGEL README", "SC 7.85, PQ 7.62"),
      base.Published("Gemini 2.0", 6.32, "BAGEL README", "SC 6.73, PQ 6.61"))
  judge = requests.Preset(
      "gpt-4.1", tries=2, note="BAGEL used gpt-4.1-2025-04-14; the same name drifted between April and "
      "June 2025, and two runs differ by 0.1. An answer is never replaced by a random number here")
  judge_files = "vie_prompts.py of GEdit-Bench's VIEScore (github.com/stepfun-ai/Step1X-Edit)"

  def read_items(self, source: str) -> list[base.Item]:
    """Reads the dataset's parquet files, or JSON lines with the same fields and paths of images."""
    items = []
    for where, record in _records(records.existing(source, "GEdit-Bench")):
      records.require(record, _FIELDS, where)
      if record["instruction_language"] not in _LANGUAGES:
        raise ValueError(
            f"{where}: malformed: instruction_language is {record['instruction_language']!r}")
      if record["instruction_language"] != self.language:
        continue
      if record["task_type"] not in GROUPS:
        raise ValueError(f"{where}: malformed: task_type is {record['task_type']!r}")
      plain = {k: v for k, v in record.items() if k not in ("input_image", "input_image_raw")}
      items.append(base.Item(record["key"], record["instruction"], record["task_type"],
                             images=(record["input_image"],), record=plain))
    records.check_names(
        f"{source}, language {self.language}", [(item.id, item.prompt) for item in items])
    return items

  def output_path(self, item: base.Item, k: int) -> str:
    if k:
      raise ValueError(f"{self.name} has one image an edit, not image {k}")
    return f"fullset/{item.category}/{self.language}/{item.id}.png"

  def side_files(self, item: base.Item) -> dict[str, bytes]:
    """The source image as `<key>_SRCIMG.png`."""
    with Image.open(io.BytesIO(image_files.read_input(item))) as image:
      return {self.side_paths(item)[0]: png.encode(image)}

  def side_paths(self, item: base.Item) -> list[str]:
    return [f"fullset/{item.category}/{self.language}/{item.id}_SRCIMG.png"]

  def read_prompts(self, path: str) -> dict[str, str]:
    """Reads the prompts of task "tie" from the user's copy of `vie_prompts.py`."""
    script = scripts.Script(path, self.judge_files)
    context = script.constant("_context_no_delimit")
    return {"SC": "\n".join([context, script.constant("_prompts_0shot_two_image_edit_rule"),
                             script.constant("_prompts_0shot_tie_rule_SC")]),
            "PQ": "\n".join([context, script.constant("_prompts_0shot_rule_PQ")])}

  def judge_requests(self, item, images, prompts, attempt=0):
    """Two calls; the edited image is resized to the source's size, both are sent as JPEG."""
    del attempt
    with Image.open(io.BytesIO(image_files.read_input(item))) as original, \
        Image.open(io.BytesIO(images[0])) as edited:
      resized = edited.convert("RGB").resize(original.size)
      parts = [_jpeg(original), _jpeg(resized)]
    texts = {"SC": prompts["SC"].replace("<instruction>", item.prompt), "PQ": prompts["PQ"]}
    sent = {"SC": parts, "PQ": parts[1:]}
    return [requests.Request((requests.Message("user", (texts[key], *sent[key])),), key=key,
                             max_tokens=1400) for key in ("SC", "PQ")]

  def parse(self, answers):
    return viescore.scores(answers["SC"], answers["PQ"])

  def write_judgements(
      self, folder: str, items: Sequence[base.Item], judgements: Iterable[base.Judgement]) -> None:
    """Writes one CSV a group to `gpt4o/eval_results_new`; the folder's name is the model's."""
    root = paths.path(folder)
    out = root / "gpt4o" / "eval_results_new"
    out.mkdir(parents=True, exist_ok=True)
    by_id = {j.item_id: j.scores for j in judgements}
    for group in GROUPS:
      text = io.StringIO()
      writer = csv.writer(text, lineterminator="\n")
      writer.writerow(_COLUMNS)
      for item in items:
        if item.category == group and (scores := by_id.get(item.id)):
          edited = root / self.output_path(item, 0)
          writer.writerow([
              edited.with_name(f"{item.id}_SRCIMG.png"), edited, item.prompt, scores["SC"], scores["PQ"],
              item.record.get("Intersection_exist", False), self.language])
      atomic_io.write(out / f"{root.name}_{group}{_SUFFIX}", text.getvalue().encode())

  def overall(self, categories):
    return base.mean([base.mean(categories.get(group, ())) for group in GROUPS])

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores the folder of the eleven `<model>_<group>_gpt_score.csv`, or a folder above it.

    A group without a row or without a file makes the official mean undefined. Strict rules let malformed
    rows, absent rows (of `items`) and absent groups count 0.
    """
    base.check_rules(rules)
    account = records.Account()
    files = _score_files(records.existing(source, "score files of GEdit-Bench"))
    expected = self.read_items(items) if items else []
    rows: dict[str, list[_Row]] = {}
    for group in GROUPS:
      rows[group] = list(self._rows(files[group], account)) if group in files else []
      account.doubled(f"{group}: the image", [r.image for r in rows[group]], "every row counts")
    account.absent("score files", [f"*_{group}{_SUFFIX}" for group in GROUPS if group not in files])
    absent = {g: _absent(rows[g], [i.id for i in expected if i.category == g]) for g in GROUPS}
    account.absent("edits", [name for group in GROUPS if group in files for name in absent[group]])
    kept = {g: [r for r in found if r.scores is not None] for g, found in rows.items()}
    if rules == "strict":
      for group, found in rows.items():
        kept[group] = [r if r.defined else _Row(r.image, [0.0, 0.0], r.shared) for r in found]
        names = absent[group] or ([f"{group}, absent"] if not found else [])
        kept[group] += [_Row(name, [0.0, 0.0], True) for name in names]
    table = {g: _measures(found) for g, found in kept.items()}
    shared = {g: _measures([r for r in found if r.shared]) for g, found in kept.items()}
    variants = {m: base.mean(table[g][i] for g in GROUPS) for i, m in enumerate(_MEASURES)}
    variants |= {f"{m} intersection": base.mean(shared[g][i] for g in GROUPS)
                 for i, m in enumerate(_MEASURES)}
    return base.Score(
        variants["O"], {g: table[g][2] for g in GROUPS}, sum(len(v) for v in kept.values()),
        account.missing, account.malformed, rules, variants=variants, published_variant="O",
        messages=tuple(account.messages),
        values=tuple(base.Value(r.image, g, r.overall) for g in GROUPS for r in kept[g]),
        details={"groups (SC, PQ, O)": table, "groups of the intersection (SC, PQ, O)": shared})

  def _rows(self, file: epath.Path, account: records.Account) -> Iterator["_Row"]:
    """Reads the rows of this language."""
    table = records.csv_rows(file)
    if table and (lacking := [c for c in _COLUMNS[3:] if c not in table[0]]):
      raise ValueError(f"{file} lacks the columns {', '.join(lacking)}")
    flags = _truth([row["intersection_exist"] for row in table])
    for number, (row, flag) in enumerate(zip(table, flags), 2):
      if row["instruction_language"] != self.language:
        if row["instruction_language"] not in _LANGUAGES:
          account.skip(f"{file.name}, row {number}", f"language {row['instruction_language']!r}")
        continue
      image = row.get("edited_image") or f"row {number}"
      try:
        scores = [float(row[c]) if row[c] else math.nan for c in ("sementics_score", "quality_score")]
        undefined = math.isnan(math.sqrt(scores[0] * scores[1]))
      except (TypeError, ValueError):
        scores, undefined = None, True
      if undefined:
        effect = "the statistics stop" if scores is None else "the group's mean is undefined"
        account.skip(f"{file.name}, row {number}", f"a score is no number (officially {effect})")
      else:
        for score in scores:
          account.check_range(f"{file.name}, row {number}", score, 0, 10)
      yield _Row(image, scores, flag)


class GEditChinese(GEdit):
  """The Chinese instructions (GEdit-Bench-CN); the official script's "zh" finds no row."""

  name = "gedit-cn"
  language = "cn"
  published = ()


class _Row:
  """Holds a row of a score file."""

  def __init__(self, image: str, scores: list[float] | None, shared: bool):
    self.image, self.scores, self.shared = image, scores, shared

  @property
  def defined(self) -> bool:
    return self.scores is not None and not math.isnan(self.overall)

  @property
  def overall(self) -> float:
    return math.sqrt(self.scores[0] * self.scores[1])


def _measures(rows: Sequence[_Row]) -> tuple[float, float, float]:
  """Means of SC, PQ and O over rows."""
  return (base.mean(r.scores[0] for r in rows), base.mean(r.scores[1] for r in rows),
          base.mean(r.overall for r in rows))


def _absent(rows: Sequence[_Row], ids: Sequence[str]) -> list[str]:
  found = {row.image.replace("\\", "/").split("/")[-1].removesuffix(".png") for row in rows}
  return [name for name in ids if name not in found]


def _truth(column: Sequence[str | None]) -> list[bool]:
  """Truth of a column as pandas reads it: booleans or numbers if all are, else any text is true."""
  column = [text or "" for text in column]
  if all(text.lower() in ("true", "false") for text in column):
    return [text.lower() == "true" for text in column]
  try:
    return [bool(float(text)) if text else True for text in column]
  except ValueError:
    return [True] * len(column)


def _score_files(folder: epath.Path) -> dict[str, epath.Path]:
  """{group: file}; looks in the folder and in all below it."""
  found: dict[str, dict[str, epath.Path]] = {}
  for file in records.files(folder, _SUFFIX):
    stem = file.name.removesuffix(_SUFFIX)
    group = next((g for g in GROUPS if stem.endswith(f"_{g}")), None)
    if group:
      found.setdefault(f"{file.parent}/{stem.removesuffix(f'_{group}')}", {})[group] = file
  if not found:
    raise FileNotFoundError(f"{folder} holds no <model>_<group>{_SUFFIX}: the score files of GEdit-Bench")
  if len(found) > 1:
    raise ValueError(f"{folder} holds score files of several models or judges: "
                     f"{', '.join(found)}; pass the folder of one")
  return next(iter(found.values()))


def _records(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (where, record) with `input_image` as bytes or a path."""
  files = records.files(path, ".parquet") if path.is_dir() else [path]
  lines = records.files(path, ".jsonl") if path.is_dir() else []
  if not files and not lines:
    raise FileNotFoundError(f"{path} holds no *.parquet and no *.jsonl: the items of GEdit-Bench")
  for file in files or lines:
    if file.suffix == ".parquet":
      from pyarrow import parquet

      with file.open("rb") as stream:
        table = parquet.ParquetFile(stream)
        rows = table.read([c for c in table.schema_arrow.names if c != "input_image_raw"]).to_pylist()
      for number, row in enumerate(rows):
        if isinstance(row.get("input_image"), dict):
          row["input_image"] = row["input_image"].get("bytes")
        yield f"{file.name}, row {number}", row
    else:
      for number, line in records.json_lines(file):
        where = f"{file.name}, line {number}"
        try:
          row = records.parse_json(line)
        except ValueError as error:
          raise ValueError(f"{where}: malformed: {error}") from error
        if isinstance(row, dict) and isinstance(row.get("input_image"), str):
          row["input_image"] = str(file.parent / row["input_image"])
        yield where, row


def _jpeg(image: Image.Image) -> requests.Image:
  out = io.BytesIO()
  image.convert("RGB").save(out, "JPEG")
  return requests.Image(out.getvalue(), "image/jpeg")
