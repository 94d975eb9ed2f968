"""Made-up copies of understanding benchmarks in VLMEvalKit's tables and in MME's own folder."""

import base64
from collections.abc import Sequence
import pathlib
import zlib

import numpy as np
from PIL import Image

from tests.scores import made_up
from unilip_jax.scores import mme, tables

NAMES = ("mme", "mmbench", "mmmu", "mmvp", "seed", "ai2d")
_FILES = {"mme": "MME.tsv", "mmbench": "MMBench_DEV_EN.tsv", "mmmu": "MMMU_DEV_VAL.tsv", "mmvp": "MMVP.tsv",
          "seed": "SEEDBench_IMG.tsv", "ai2d": "AI2D_TEST.tsv"}
_TASKS = (*mme.PERCEPTION, *mme.COGNITION)
_SPLIT_TASKS = ("artwork", "celebrity", "landmark", "posters", "scene")
_ROTATION = 1_000_000


def make(name: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes a made-up copy of at least twelve questions; returns the path for --items."""
  folder.mkdir(parents=True)
  rows = {"mme": _mme, "mmbench": _mmbench, "mmmu": _mmmu}.get(name, _choices)(folder.parent)
  tables.write_tsv(folder / _FILES[name], rows)
  return folder / _FILES[name]


def make_mme_folder(folder: pathlib.Path) -> pathlib.Path:
  """Writes MME as it is distributed: fourteen tasks of one image and two questions; returns its folder."""
  root = folder / "MME_Benchmark_release_version/MME_Benchmark"
  for number, task in enumerate(_TASKS):
    images, texts = root / task, root / task
    if task in _SPLIT_TASKS:
      images, texts = root / task / "images", root / task / "questions_answers_YN"
    made_up.write_image(images / f"{number:04d}.{'png' if number % 2 else 'jpg'}", number)
    texts.mkdir(exist_ok=True)
    (texts / f"{number:04d}.txt").write_text("".join(
        f"Is thing {k} in image {number}? Please answer yes or no.\t{answer}\n"
        for k, answer in enumerate(("Yes", "No"))) + "\n")
  made_up.write_image(root / "artwork/images/unused.jpg", 0)  # the release holds images without questions
  return folder


class Answerer:
  """Answers with an option's letter, Yes or No, which depends on all pixels and the text."""

  image_size, batch_size = 16, 5

  def answers(
      self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int,
      max_tiles: int) -> list[str]:
    found = []
    for each, question in zip(images, questions):
      value = zlib.crc32(b"".join(np.asarray(i).tobytes() for i in each) + question.encode())
      options = ("Yes", "No.") if "yes or no" in question else ("A", "B.", "The answer is A")
      found.append(options[value % len(options)])
    return found


def image(folder: pathlib.Path, seed: int) -> str:
  """An image of noise in base64."""
  made_up.write_image(folder / "one.png", seed)
  return base64.b64encode((folder / "one.png").read_bytes()).decode()


def _mme(folder):
  return [{"index": str(2 * n + k), "category": task, "image_path": f"{task}/{n}.jpg",
           "question": f"Is thing {k} in image {n}? Please answer yes or no.", "answer": ("Yes", "No")[k],
           "image": image(folder, n)} for n, task in enumerate(_TASKS) for k in range(2)]


def _choices(folder):
  return [{"index": str(i), "question": f"What is in image {i}?", "A": "a cup", "B": "a cat",
           "answer": "AB"[i % 2], "category": f"kind {i % 3}", "image": image(folder, i)}
          for i in range(12)]


def _mmbench(folder):
  rows = [row | {"l2-category": row["category"], "split": "dev", "hint": None} for row in _choices(folder)]
  return rows + [row | {"index": str(int(row["index"]) + _ROTATION), "A": row["B"], "B": row["A"],
                        "answer": "BA"["AB".index(row["answer"])], "image": row["index"]} for row in rows]


def _mmmu(folder):
  rows = []
  for i in range(12):
    images = [image(folder, 10 * i + k) for k in range(1 + i % 3)]
    marks = " and ".join(f"<image {k + 1}>" for k in range(len(images)))
    opened = i % 4 == 3  # an open question has no options
    rows.append({"index": str(i), "question": f"What is in {marks}?", "A": None if opened else "a cup",
                 "B": None if opened else "a cat", "answer": "7" if opened else "A",
                 "category": f"Subject_{i % 3}", "split": "validation",
                 "image": images[0] if len(images) == 1 else str(images)})
  return rows
