"""Runs two made-up tasks of Shapes with lmms-eval and the plug-in: questions about images, and edits.

  pip install lmms-eval filelock==3.20.0
  python -m benchmarks.lmms_eval_tasks [--checkpoint=shapes:gen3] [--examples=16] [--workdir=runs/lmms_eval]

Writes the tasks (YAML, functions, parquet) into <workdir>/tasks and starts lmms-eval's own command line
twice, with --include_path. Next to its scores stand those of UniLIP.chat and UniLIP.edit on the same
inputs, from the same noise. Needs no download. Writes
benchmarks/results/lmms_eval_tasks_<device>.json.
"""

import argparse
import importlib.metadata
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet

from benchmarks import harness
from unilip_jax import UniLIP
from unilip_jax.scores import makers
from unilip_jax.shapes import captions, edits, questions, render, scene, tars, verify

_TASKS = {  # {task: (mode of the plug-in, its score)}
    "shapes_questions": ("answer", "accuracy"), "shapes_edits": ("image", "success")}
_YAML = """dataset_path: parquet
dataset_kwargs:
  data_files: {{test: "{data}"}}
task: {task}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.visual
doc_to_text: !function functions.text
doc_to_target: "answer"
process_results: !function functions.{task}
generation_kwargs: {{max_new_tokens: 8, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
"""
_FUNCTIONS = '''"""Functions of the made-up tasks."""

import io
import json

from PIL import Image

from benchmarks import lmms_eval_tasks


def visual(doc):
  return [Image.open(io.BytesIO(doc["png"]))]


def text(doc, lmms_eval_specific_kwargs=None):
  return doc["text"]


def shapes_questions(doc, results):
  return {"accuracy": lmms_eval_tasks.answered(doc["id"], results[0])}


def shapes_edits(doc, results):
  return {"success": lmms_eval_tasks.edited(doc["id"], Image.open(json.loads(results[0])["images"][0]))}
'''


def question(i: int) -> tuple[scene.Scene, questions.Question]:
  """A scene of the test split and one question about it."""
  one = captions.sample_scene(0, i, "test")
  asked = questions.questions(one, np.random.default_rng((0, i, 5)))
  return one, asked[i % len(asked)]


def answered(i: int, reply: str) -> float:
  """Whether a reply answers question i."""
  return float(questions.correct(question(i)[1], reply))


def edited(i: int, image: Image.Image) -> float:
  """Whether an image is edit i of the test split."""
  return float(edits.score(tars.sample_edit(0, i, "test"), verify.verify(np.asarray(image)))[0])


def _write_tasks(folder: pathlib.Path, count: int) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "functions.py").write_text(_FUNCTIONS)
  rows = {"shapes_questions": [(render.render(s), q.text) for s, q in map(question, range(count))],
          "shapes_edits": [(render.render(e.source), e.instruction)
                           for e in (tars.sample_edit(0, i, "test") for i in range(count))]}
  for task, pairs in rows.items():
    data = folder / f"{task}.parquet"
    parquet.write_table(pa.table({
        "id": list(range(count)), "text": [t for _, t in pairs], "answer": [""] * count,
        "png": [_png(pixels) for pixels, _ in pairs]}), data)
    (folder / f"{task}.yaml").write_text(_YAML.format(data=data, task=task, metric=_TASKS[task][1]))


def _png(pixels: np.ndarray) -> bytes:
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "PNG")
  return out.getvalue()


def _run(task: str, args: argparse.Namespace, workdir: pathlib.Path) -> float:
  """Scores a task with lmms-eval's command line."""
  mode, metric = _TASKS[task]
  settings = f"checkpoint={args.checkpoint},mode={mode},dtype=float32,out={workdir / 'images'}"
  subprocess.run(
      [sys.executable, "-m", "lmms_eval", "--model", "unilip_jax", "--model_args", settings,
       "--tasks", task, "--include_path", str(workdir / "tasks"), "--batch_size", "8",
       "--output_path", str(workdir / task)], check=True)
  written = sorted((workdir / task).rglob("*results.json"), key=lambda p: p.stat().st_mtime)
  if not written:  # lmms-eval ends with status 0 after an error too
    raise SystemExit(f"lmms-eval wrote no results of {task}; its message is above")
  newest = written[-1]
  return json.loads(newest.read_text())["results"][task][f"{metric},none"]


def _expected(args: argparse.Namespace) -> dict[str, float]:
  """The same scores without lmms-eval; all edits start from the noise of seed 42, as in `evals make`."""
  model = UniLIP.load(args.checkpoint, "float32")
  pairs = [question(i) for i in range(args.examples)]
  replies = model.chat([render.render(s) for s, _ in pairs], [q.text for _, q in pairs], max_new_tokens=8,
                       max_tiles=6)
  changes = [tars.sample_edit(0, i, "test") for i in range(args.examples)]
  sources = [render.render(e.source) for e in changes]
  zeros = np.zeros(args.examples, np.int32)
  noise = np.asarray(makers.noise(42, zeros, zeros, shape=model.encode(sources[0]).shape))
  images = model.edit(sources, [e.instruction for e in changes], latents=noise, output="array")
  return {"shapes_questions": float(np.mean([answered(i, r) for i, r in enumerate(replies)])),
          "shapes_edits": float(np.mean([edited(i, Image.fromarray(x)) for i, x in enumerate(images)]))}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--checkpoint", default="shapes:gen3")
  parser.add_argument("--examples", type=int, default=16)
  parser.add_argument("--workdir", default="runs/lmms_eval")
  args = parser.parse_args()
  workdir = pathlib.Path(args.workdir).absolute()
  _write_tasks(workdir / "tasks", args.examples)
  scores = {task: _run(task, args, workdir) for task in _TASKS}
  rows = []
  for task, expected in _expected(args).items():
    rows += [harness.row(f"{task}, lmms-eval", [scores[task]], "share"),
             harness.row(f"{task}, UniLIP", [expected], "share")]
  harness.write(f"benchmarks/results/lmms_eval_tasks_{harness.label()}.json", "lmms_eval_tasks",
                {"checkpoint": args.checkpoint, "examples": args.examples,
                 "lmms_eval": importlib.metadata.version("lmms_eval")}, rows)


if __name__ == "__main__":
  main()
