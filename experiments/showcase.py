"""Writes examples of what a checkpoint can do on Shapes: reconstruction, chat, generation and editing.

  python -m experiments.showcase --checkpoint=DIR --workdir=DIR [--compare=shapes:gen3]

Scenes, questions, prompts and edits are the first ones of the test split, which training never uses. Each
result is marked automatically. Writes <workdir>/showcase/*.png and showcase.json, which the report of that
workdir shows. With --compare, images and edits of other weights are shown next to them.
"""

import argparse
from collections.abc import Iterator, Sequence
import json
from typing import Any

from absl import logging
from etils import epath
import numpy as np
from PIL import Image

from unilip_jax.common import command_options, errors
from unilip_jax.infer.model import UniLIP
from unilip_jax.shapes import (
  captions,
  edits,
  language,
  paraphrases,
  questions,
  render,
  scene,
  tars,
  verify,
)

FOLDER = "showcase"
FILE = "showcase.json"
ABILITIES = ("reconstruct", "chat", "generate", "edit")

_SEED = 0
_SPLIT = "test"
_ASK = "describe the image."
_USUAL = {"guidance": 2.0, "steps": 20}  # options of the weights of --compare

# {"ability", "images": [(label, uint8[H, W, 3])], "asked": prompt, "said": answer, "right": bool}
Entry = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.showcase", description=__doc__.split("\n\n")[0])
  parser.add_argument("--checkpoint", required=True, type=command_options.path,
                      help="a run of gen2 or gen3, or shapes:NAME")
  parser.add_argument("--workdir", required=True, type=command_options.path,
                      help="where showcase/ is written")
  parser.add_argument("--each", type=int, default=8, help="examples of every ability")
  parser.add_argument("--guidance", type=float, default=_USUAL["guidance"])
  parser.add_argument("--steps", type=int, default=_USUAL["steps"])
  parser.add_argument("--paraphrases", action="store_true",
                      help="paraphrase every other prompt (shapes/paraphrases.py)")
  parser.add_argument("--compare", default="", help="weights whose images and edits are shown as well")
  args = parser.parse_args(argv)
  print(write(args.checkpoint, args.workdir, args.each, args.guidance, args.steps, args.paraphrases,
              args.compare))


def write(
    checkpoint: str, workdir: epath.PathLike, each: int, guidance: float, steps: int,
    paraphrased: bool = False, compare: str = ""
) -> epath.Path:
  """Writes the showcase of a checkpoint; returns the path of showcase.json.

  Args:
    checkpoint: as of UniLIP.load.
    workdir: where showcase/ is written.
    each: examples of every ability.
    guidance: of generation and edits.
    steps: network evaluations of a sample.
    paraphrased: whether every other prompt and instruction is paraphrased.
    compare: as `checkpoint`, weights whose images and edits of the same prompts are added, made in 20 steps
      with guidance 2; "" adds none.

  Raises:
    FileNotFoundError: if there is no such checkpoint.
    ValueError: if it cannot generate and chat.
  """
  options = {"guidance": guidance, "steps": steps, "seed": _SEED}
  folder = epath.Path(workdir) / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  entries = []
  model = UniLIP.load(checkpoint, "float32", batch_size=each)
  found = list(examples(model, each, options, paraphrased))
  if compare:
    _add_others(found, compare, each, paraphrased)
  for entry in found:
    files = []
    for label, image in entry["images"]:
      name = f"{len(entries):03d}_{entry['ability']}_{label}.png"
      with (folder / name).open("wb") as f:
        Image.fromarray(image).save(f, "PNG")
      files.append({"label": label, "file": name})
    entries.append(entry | {"images": files})
  path = folder / FILE
  path.write_text(json.dumps({"checkpoint": checkpoint, **options, "entries": entries}, indent=1))
  for ability in ABILITIES:
    marks = [e["right"] for e in entries if e["ability"] == ability]
    logging.info("%s: %d of %d correct", ability, sum(marks), len(marks))
  return path


def _add_others(entries: Sequence[Entry], compare: str, each: int, paraphrased: bool) -> None:
  """Adds to the entries of generation and edits the image that other weights make, and its mark."""
  model, options = UniLIP.load(compare, "float32", batch_size=each), {**_USUAL, "seed": _SEED}
  others = [*_generate(model, each, options, paraphrased), *_edit(model, each, options, paraphrased)]
  made = [e for e in entries if e["ability"] in ("generate", "edit")]
  for entry, other in zip(made, others, strict=True):
    entry["images"].append((compare.replace(":", "_").rpartition("/")[2], other["images"][-1][1]))
    entry["said"] = f"last image: {compare}, {'correct' if other['right'] else 'not correct'}"


def examples(
    model: UniLIP, each: int, options: dict[str, Any], paraphrased: bool = False) -> Iterator[Entry]:
  """Yields the first examples of the test split, with their results, ability after ability.

  Args:
    model: with all modules.
    each: examples of every ability.
    options: of UniLIP.generate and UniLIP.edit.
    paraphrased: whether every other prompt and instruction is paraphrased.
  """
  yield from _reconstruct(model, each)
  yield from _chat(model, each)
  yield from _generate(model, each, options, paraphrased)
  yield from _edit(model, each, options, paraphrased)


def _paraphrase(texts: Sequence[str], ways: Sequence[str], paraphrased: bool) -> list[str]:
  """Paraphrases every other text from the second on, with the templates in turn."""
  return [paraphrases.paraphrase(t, ways, i // 2) if paraphrased and i % 2 else t
          for i, t in enumerate(texts)]


def _scenes(count: int) -> list[scene.Scene]:
  return [captions.sample_scene(_SEED, i, _SPLIT) for i in range(count)]


def _reconstruct(model: UniLIP, each: int) -> Iterator[Entry]:
  for one in _scenes(each):
    before = render.render(one)
    after = model.reconstruct(before, output="array")
    yield {"ability": "reconstruct", "images": [("input", before), ("reconstruction", after)],
           "asked": "", "said": "", "right": verify.verify(after) == one}


def _chat(model: UniLIP, each: int) -> Iterator[Entry]:
  """Questions whose types alternate; the last is for a description."""
  pairs: list[tuple[scene.Scene, questions.Question | None]] = []
  for i, one in enumerate(_scenes(each)):
    rng = np.random.default_rng((_SEED, i))
    by_type = {q.type: q for q in questions.questions(one, rng)}
    kind = questions.TYPES[i % len(questions.TYPES)]
    pairs.append((one, by_type.get(kind) or next(iter(by_type.values()))))
  pairs[-1] = pairs[-1][0], None
  images = [render.render(one) for one, _ in pairs]
  answers = model.chat(images, [q.text if q else _ASK for _, q in pairs], max_new_tokens=64)
  for image, (one, question), answer in zip(images, pairs, answers):
    right = (questions.correct(question, answer) if question
             else answer == language.describe(one))
    yield {"ability": "chat", "images": [("image", image)],
           "asked": question.text if question else _ASK, "said": answer, "right": right}


def _generate(
    model: UniLIP, each: int, options: dict[str, Any], paraphrased: bool) -> Iterator[Entry]:
  """Prompts whose six categories alternate."""
  prompts = captions.prompts_in_turn(each, _SEED, _SPLIT)
  texts = _paraphrase([c.text for c in prompts], paraphrases.PROMPTS, paraphrased)
  for caption, text, image in zip(prompts, texts, model.generate(texts, output="array", **options)):
    yield {"ability": "generate", "images": [("sample", image)], "asked": text, "said": "",
           "right": captions.fits(caption, verify.verify(image))}


def _edit(model: UniLIP, each: int, options: dict[str, Any], paraphrased: bool) -> Iterator[Entry]:
  """Edits whose categories alternate."""
  samples = [tars.sample_edit(_SEED, i, _SPLIT) for i in range(each)]
  before = [render.render(e.source) for e in samples]
  texts = _paraphrase([e.instruction for e in samples], paraphrases.EDITS, paraphrased)
  after = model.edit(before, texts, output="array", **options)
  for one, text, source, result in zip(samples, texts, before, after):
    success, preserved = edits.score(one, verify.verify(result))
    yield {"ability": "edit", "images": [("input", source), ("edited", result)],
           "asked": text, "said": "",
           "right": bool(success and preserved is not False)}


if __name__ == "__main__":
  errors.run_command(main)
