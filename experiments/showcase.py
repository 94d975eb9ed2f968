"""What a checkpoint of the Shapes world can do, in pictures: reconstructs, chats, generates and edits.

  python -m experiments.showcase --checkpoint=DIR --workdir=DIR

Scenes, questions, prompts and edits are the first ones of the test split, which training never shows;
a program marks each result. Writes <workdir>/showcase/*.png and showcase.json, which the report of
that workdir shows.
"""

import argparse
from collections.abc import Iterator, Sequence
import functools
import json
import sys
from typing import Any

from absl import logging
from etils import epath
import numpy as np
from PIL import Image

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

# {"ability", "images": [(label, uint8[H, W, 3])], "asked", "said", "right": bool or None}
Entry = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.showcase", description=__doc__.split("\n\n")[0])
  parser.add_argument("--checkpoint", required=True, help="a run of gen1 to gen3, or shapes:NAME")
  parser.add_argument("--workdir", required=True, help="where showcase/ is written")
  parser.add_argument("--each", type=int, default=8, help="examples of every ability")
  parser.add_argument("--guidance", type=float, default=2.0)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--paraphrases", action="store_true",
                      help="put every other prompt as people do (shapes/paraphrases.py)")
  args = parser.parse_args(argv)
  try:
    path = make(args.checkpoint, args.workdir, args.each, args.guidance, args.steps, args.paraphrases)
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f"error: {error}")
  print(path)


def make(
    checkpoint: str, workdir: epath.PathLike, each: int, guidance: float, steps: int,
    with_paraphrases: bool = False
) -> epath.Path:
  """Writes the showcase of a checkpoint; returns the path of showcase.json.

  Args:
    checkpoint: as of UniLIP.load.
    workdir: where showcase/ is written.
    each: examples of every ability.
    guidance: of generation and edits.
    steps: network evaluations of a sample.
    with_paraphrases: every other prompt and instruction is put as people put it.

  Raises:
    FileNotFoundError: if there is no such checkpoint.
    ValueError: if it cannot generate and chat.
  """
  model = UniLIP.load(checkpoint, "float32", batch_size=each)
  options = {"guidance": guidance, "steps": steps, "seed": _SEED}
  folder = epath.Path(workdir) / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  entries = []
  draws = [functools.partial(f, with_paraphrases=with_paraphrases) for f in (_generate, _edit)]
  for maker in (_reconstruct, _chat, *draws):
    for entry in maker(model, each, options):
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
    logging.info("%s: %d of %d right", ability, sum(marks), len(marks))
  return path


def _put(words: Sequence[str], ways: Sequence[str], with_paraphrases: bool) -> list[str]:
  """The words; with wishes every other one, from the second on, put in the ways in turn."""
  return [paraphrases.paraphrase(w, ways, i // 2) if with_paraphrases and i % 2 else w
          for i, w in enumerate(words)]


def _scenes(count: int) -> list[scene.Scene]:
  return [captions.sample_scene(_SEED, i, _SPLIT) for i in range(count)]


def _reconstruct(model: UniLIP, each: int, options: dict[str, Any]) -> Iterator[Entry]:
  del options
  for one in _scenes(each):
    before = render.render(one)
    made = model.reconstruct(before)
    yield {"ability": "reconstruct", "images": [("input", before), ("reconstruction", made)],
           "asked": "", "said": "", "right": verify.verify(made) == one}


def _chat(model: UniLIP, each: int, options: dict[str, Any]) -> Iterator[Entry]:
  """A question of every type in turn, and once a description."""
  del options
  asked: list[tuple[scene.Scene, questions.Question | None]] = []
  for i, one in enumerate(_scenes(each)):
    rng = np.random.default_rng((_SEED, i))
    drawn = {q.type: q for q in questions.questions(one, rng)}
    wanted = questions.TYPES[i % len(questions.TYPES)]
    asked.append((one, drawn.get(wanted) or next(iter(drawn.values()))))
  asked[-1] = asked[-1][0], None
  pictures = [render.render(one) for one, _ in asked]
  said = model.chat(pictures, [q.text if q else _ASK for _, q in asked], max_new_tokens=64)
  for picture, (one, question), answer in zip(pictures, asked, said):
    right = (questions.correct(question, answer) if question
             else answer == language.describe(one))
    yield {"ability": "chat", "images": [("image", picture)],
           "asked": question.text if question else _ASK, "said": answer, "right": right}


def _generate(
    model: UniLIP, each: int, options: dict[str, Any], with_paraphrases: bool) -> Iterator[Entry]:
  """Prompts of the six categories in turn."""
  asked = captions.prompts_in_turn(each, _SEED, _SPLIT)
  texts = _put([c.text for c in asked], paraphrases.PROMPTS, with_paraphrases)
  for caption, text, made in zip(asked, texts, model.generate(texts, **options)):
    yield {"ability": "generate", "images": [("sample", made)], "asked": text, "said": "",
           "right": captions.fits(caption, verify.verify(made))}


def _edit(
    model: UniLIP, each: int, options: dict[str, Any], with_paraphrases: bool) -> Iterator[Entry]:
  """Edits of every category in turn."""
  asked = [tars.sample_edit(_SEED, i, _SPLIT) for i in range(each)]
  before = [render.render(e.source) for e in asked]
  texts = _put([e.instruction for e in asked], paraphrases.EDITS, with_paraphrases)
  after = model.edit(before, texts, **options)
  for one, text, source, made in zip(asked, texts, before, after):
    success, preserved = edits.score(one, verify.verify(made))
    yield {"ability": "edit", "images": [("input", source), ("edited", made)],
           "asked": text, "said": "",
           "right": bool(success and preserved is not False)}


if __name__ == "__main__":
  main()
