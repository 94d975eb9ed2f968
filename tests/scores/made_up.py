"""Made-up copies of benchmarks in their real formats, twelve items each, and judges that answer in form."""

from collections.abc import Callable, Mapping
import csv
import dataclasses
import io
import json
import pathlib
import re
from typing import Any
import zlib

from etils import epath
import numpy as np
from PIL import Image

from tests.scores import judge_server
from unilip_jax.convert import geneval_detector
from unilip_jax.scores import base, dpg, geneval, geneval_rules, image_files, judging, provenance

_WISE_SCRIPT = '''
SYSTEM = "never executed"
raise SystemExit("the script must not run")

def build_evaluation_messages(prompt_data, image_base64):
    return [
        {"role": "system", "content": [{"type": "text", "text": "You audit made-up images."}]},
        {"role": "user", "content": [
            {"type": "text", "text": f"""Rate it.
PROMPT: "{prompt_data['Prompt']}"
EXPLANATION: "{prompt_data['Explanation']}" """},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image_base64}"}}]}]
'''
_VIE_SCRIPT = '''
_context_no_delimit = "You rate made-up images."
_prompts_0shot_two_image_edit_rule = "Two images: before and after."
_prompts_0shot_tie_rule_SC = "PROMPT: <instruction>"
_prompts_0shot_rule_PQ = "QUALITY of the image."
'''
_TYPES = ("background", "adjust", "style", "extract", "remove", "add", "replace", "compose", "action")
_GROUPS = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change",
    "subject-add", "subject-remove", "subject-replace", "text_change", "tone_transfer")
_DPG_KINDS = (("entity - whole", 0), ("attribute - color", 1), ("other - count", 0))  # and the parent
_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclasses.dataclass(frozen=True)
class Copy:
  """Holds a made-up benchmark.

  Attributes:
    items, prompts: paths for the commands; prompts is None if the judge needs none.
    answer: text of a right answer to a request's body.
  """

  items: pathlib.Path
  prompts: pathlib.Path | None
  answer: Callable[[Mapping[str, Any]], str]


def make(name: str, folder: pathlib.Path) -> Copy:
  """Writes a made-up copy of a benchmark of images, or of MM-Vet."""
  folder.mkdir(parents=True)
  return {
      "wise": _wise, "wise-rewrite": lambda f: _wise(f, "_rewrite"), "wise-verified": _wise_verified,
      "imgedit": _imgedit, "imgedit-hard": _imgedit_hard, "gedit": _gedit,
      "gedit-cn": lambda f: _gedit(f, "cn"), "geneval": _geneval, "geneval-long": _geneval,
      "geneval-hf": _geneval, "dpg": _dpg, "dpg-1": _dpg, "mmvet": _mmvet}[name](folder)


def judge(name: str, copy: Copy, images: pathlib.Path, out: pathlib.Path, url: str) -> None:
  """Writes what the benchmark's judge, detector or question-answering model finds out about images."""
  if name == "geneval-hf":
    geneval_detector.run(str(copy.items), str(images), str(out), BrightDetector())
  elif name.startswith("geneval"):
    out.mkdir()
    provenance.write_lines(out / "results.jsonl", detect(copy.items, images))
  elif name.startswith("dpg"):
    out.mkdir()
    answer_dpg(name, copy.items, images, out)
  else:
    judging.main([f"--benchmark={name}", f"--items={copy.items}", f"--images={images}",
                  f"--prompts={copy.prompts}", f"--out={out}", f"--base_url={url}"])


def number(body: Mapping[str, Any], most: int) -> int:
  """A whole number from 0 to `most` that depends on the last image and on the text of a request."""
  text = "".join(judge_server.images(body)[-1:]) + judge_server.texts(body)
  return zlib.crc32(text.encode()) % (most + 1)


def write_image(path: pathlib.Path, seed: int, size: tuple[int, int] = (24, 16)) -> None:
  """Writes an image of noise."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
  Image.fromarray(pixels).save(path)


def _wise(folder: pathlib.Path, stem: str = "", space: int = 568) -> Copy:
  for name, ids in (("cultural_common_sense", (1, 2, 3, 400)),
                    ("spatio-temporal_reasoning", (401, 402, space, 640)),
                    ("natural_science", (701, 801, 901, 1000))):
    (folder / f"{name}{stem}.json").write_text(json.dumps([
        {"Prompt": f"A made-up scene number {i}", "Explanation": f"It shows {i}.", "Category": "x",
         "Subcategory": "Life", "prompt_id": i} for i in ids]))
  script = folder.parent / f"wise{stem}.py"
  script.write_text(_WISE_SCRIPT)
  return Copy(folder, script, lambda body: (
      f"Consistency: {number(body, 2)}\nRealism: 1\n**Aesthetic Quality** : {number(body, 1)}"))


def _wise_verified(folder: pathlib.Path) -> Copy:
  copy = _wise(folder, "_verified", 521)
  return dataclasses.replace(
      copy, answer=lambda body: f"<think>Score: 0</think>\nScore: {number(body, 1)}")


def _imgedit(folder: pathlib.Path) -> Copy:
  records = {}
  for i in range(12):
    name = f"daily object/{i:09d}.jpg"
    write_image(folder / name, i)
    records[str(22 + 7 * i)] = {"id": name, "prompt": f"Change it in way {i}.",
                                "edit_type": _TYPES[i % len(_TYPES)]}
  (folder / "singleturn.json").write_text(json.dumps(records))
  prompts = folder / "judge_prompt.json"
  prompts.write_text(json.dumps({t: f"Rate this {t}: <edit_prompt>" for t in _TYPES}))
  return Copy(folder, prompts, lambda body: (
      f"Brief reasoning: fine\nPrompt Compliance: {1 + number(body, 4)}\nVisual Naturalness: 3\n"
      "Physical & Detail Integrity: 2"))


def _imgedit_hard(folder: pathlib.Path) -> Copy:
  records = {}
  for i in range(12):
    write_image(folder / f"{i}.jpg", i)
    records[str(i + 1)] = {"id": f"{i}.jpg", "prompt": f"Change it in way {i}."}
  (folder / "UGE_edit.json").write_text(json.dumps(records))
  script = folder.parent / "UGE_bench.py"
  script.write_text('prompt = "Rate this edit: <edit_prompt>"\n')
  return Copy(folder, script, lambda body: f"Brief reasoning: fine\nScore: {1 + number(body, 4)}")


def _dpg(folder: pathlib.Path) -> Copy:
  rows = []
  for i in range(12):
    for k, (kind, parent) in enumerate(_DPG_KINDS):
      rows.append({
          "item_id": f"scene{i}", "text": f"A made-up scene number {i}.", "keywords": "",
          "proposition_id": k + 1, "dependency": 0 if i == 0 else parent, "category_broad": "",
          "category_detailed": "", "tuple": f"{kind} (cup)",
          "question_natural_language": f"Is thing {k} in scene number {i}?"})
  with (folder / "dpg_bench.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return Copy(folder, None, lambda body: "")


def answer_dpg(name: str, items: pathlib.Path, images: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the official `*_detail.txt` of a model: its answers depend on tile and question."""
  benchmark = base.find(name)
  read = benchmark.read_items(str(items))
  questions = dpg.read_questions(epath.Path(items / "dpg_bench.csv"), every=True)
  found, lines = image_files.check(benchmark, read, images), []
  for (item_id, _), path in found.files.items():
    image = np.asarray(Image.open(images / path))
    side = len(image) // benchmark.tiles_per_side
    for y in range(0, len(image), side):
      for x in range(0, len(image), side):
        for question in questions[item_id]:
          tile = image[y:y + side, x:x + side].tobytes() + question.text.encode()
          answer = "yes" if zlib.crc32(tile) % 3 else "no"
          lines.append(f"{path}, ({x}, {y}, {x + side}, {y + side}), {question.text}, {answer}\n")
  (out / "made_up_detail.txt").write_text("".join(lines))


def _gedit(folder: pathlib.Path, language: str = "en") -> Copy:
  lines = []
  for i in range(12):
    write_image(folder / f"{i}.png", i, (64, 32))
    lines.append(json.dumps({
        "task_type": _GROUPS[i % len(_GROUPS)], "key": f"{i:032x}", "instruction": f"Change it in way {i}.",
        "instruction_language": language, "Intersection_exist": i % 2 == 0, "input_image": f"{i}.png"}))
  (folder / "gedit.jsonl").write_text("\n".join(lines))
  script = folder.parent / "vie_prompts.py"
  script.write_text(_VIE_SCRIPT)
  return Copy(folder, script, lambda body: json.dumps(
      {"score": [number(body, 9) + 1, 8], "reasoning": "fine"}))


def _mmvet(folder: pathlib.Path) -> Copy:
  for i in range(12):
    write_image(folder / f"images/v1_{i}.png", i)
  abilities = ("rec", "ocr", "know", "gen", "spat", "math")
  (folder / "mm-vet.json").write_text(json.dumps({f"v1_{i}": {
      "imagename": f"v1_{i}.png", "question": f"What is there in way {i}?", "answer": "12<AND>18",
      "capability": sorted({abilities[i % 6], abilities[i % 5]})} for i in range(12)}))
  script = folder.parent / "mm-vet_evaluator.py"
  script.write_text('prompt = "question | ground truth | prediction | score"\n'
                    'def grade():\n  return "\\nPredict the correctness (digit): "\n')
  return Copy(folder, script, lambda body: f"0.{number(body, 9)}")


def _geneval(folder: pathlib.Path) -> Copy:
  lines = []
  for i in range(12):
    record = {"tag": _TAGS[i % 6], "include": [{"class": "cup", "count": 1 + i % 2}],
              "prompt": f"a photo of a cup in way {i}"}
    if record["tag"] == "counting":
      record["exclude"] = [{"class": "cup", "count": 2 + i % 2}]
    lines.append(json.dumps(record))
  (folder / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
  return Copy(folder, None, lambda body: "")


class BrightDetector:
  """Finds a cup in every image, and a second one in images whose first pixel is bright."""

  name = "bright"

  def detect(self, image):
    count = 1 + (np.asarray(image)[0, 0].mean() > 127)
    boxes = np.array([[0, 0, 4, 4, 0.95 - 0.01 * i] for i in range(count)], np.float32)
    return {"cup": (boxes, None)}

  def colors(self, crops, class_name):
    return ["red"] * len(crops)


def detect(items: pathlib.Path, images: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of GenEval's results.jsonl about a folder of images, as `evals detect` makes them."""
  benchmark = geneval.GenEval()
  records = {item.id: dict(item.record) for item in benchmark.read_items(str(items))}
  found = image_files.check(benchmark, benchmark.read_items(str(items)), images)
  return [geneval.judge_image(path, Image.open(io.BytesIO(found.read(key))), records[key[0]],
                              BrightDetector(), geneval_rules.Options())
          for key, path in found.files.items()]


def scene(body: Mapping[str, Any]) -> int:
  """The number of the item that a request is about; -1 if its text does not tell."""
  found = re.findall(r"(?:number|way) (\d+)", judge_server.texts(body))
  return int(found[0]) if found else -1
