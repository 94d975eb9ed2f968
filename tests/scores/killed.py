"""Kills a step at random moments and runs it again, until it ends by itself.

`python -m tests.scores.killed judge|make|answers FOLDER SIGNAL KILLS ARGUMENT`

The step runs in a fork of this process, which is killed by SIGKILL (files are as a lost machine leaves
them) or SIGTERM. Prints the number of runs that were killed.
"""

import os
import pathlib
import random
import signal
import sys
import time

import numpy as np

from tests.scores import fakes
from unilip_jax.common import errors
from unilip_jax.scores import base, chat_api, image_files, judging, prices
from unilip_jax.scores import judge as judge_lib

LATENT = (2, 2, 1)
IMAGES = 10  # of an item: far more work than runs that are killed can do


class SlowMaker:
  """Makes an image of its prompt and noise; each takes a while."""

  image_size, latent_shape, batch_size, few_step = 8, LATENT, 1, ""

  def prompt_length(self, prompt, *, editing):
    return 32

  def images(self, batch, options):
    time.sleep(0.015)
    return [np.full((8, 8, 3), (sum(map(ord, prompt)) + 1000 * noise.sum()) % 256, np.uint8)
            for prompt, noise in zip(batch.prompts, batch.latents)]


def judge(folder: pathlib.Path, url: str) -> None:
  """Judges the images in FOLDER/images."""
  benchmark = fakes.Colors()
  items = benchmark.read_items("")
  found = image_files.check(benchmark, items, folder / "images", images_per_item=IMAGES)
  subject = judge_lib.Subject(benchmark, items, list(found.files), found.read)
  settings = judge_lib.Settings("judge-x", 2, prices.Price(0.0, 0.0), None, concurrency=3)
  with judge_lib.open_log(str(folder / "out")) as log, judging.terminable():
    judgements = judge_lib.Judge(
        subject, chat_api.Endpoint(url, environment={}), settings, log, lambda line: None).run()
  benchmark.write_judgements(str(folder / "out"), items, judgements)


def make(folder: pathlib.Path, noise: str) -> None:
  """Makes images in FOLDER/images; the noise is from a file, so that no device is needed."""
  from unilip_jax.scores import make as make_lib
  from unilip_jax.scores import make_record

  benchmark = fakes.Colors()
  settings = make_lib.Settings(size=8, noise=noise, images_per_item=IMAGES)
  record = make_lib.record(benchmark, settings, SlowMaker(), "float32", False)
  out = make_record.open_folder(folder / "images", record)
  make_lib.make_images(benchmark, benchmark.read_items(""), out, SlowMaker(), settings)


class SlowAnswerer:
  """Answers with the question; each takes a while."""

  image_size, batch_size = 8, 2

  def answers(self, images, questions, *, max_new_tokens, max_tiles):
    time.sleep(0.015 * len(questions))
    return [f"answer to {question}" for question in questions]


def answers(folder: pathlib.Path, count: str) -> None:
  """Answers `count` questions into FOLDER/answers."""
  from unilip_jax.scores import make as make_lib
  from unilip_jax.scores import multiple_choice

  items = [base.Item(str(i), f"question {i}", "a", record={"index": str(i)}) for i in range(int(count))]
  out = folder / "answers"
  out.mkdir(parents=True, exist_ok=True)
  make_lib.make_answers(multiple_choice.Seed(), items, out, SlowAnswerer(), max_new_tokens=1, max_tiles=1)


def main(step: str, folder: str, kind: str, kills: str, argument: str) -> None:
  rng, killed = random.Random(1), 0
  if step != "judge":
    from unilip_jax.scores import make as make_lib  # noqa: F401  (before the forks)
  while True:
    child = os.fork()
    if child == 0:
      try:
        {"judge": judge, "make": make, "answers": answers}[step](pathlib.Path(folder), argument)
      except SystemExit as end:
        os._exit(end.code)
      os._exit(0)
    if killed < int(kills):
      time.sleep(rng.uniform(0.0, 0.04))
      os.kill(child, signal.Signals[kind])
    _, status = os.waitpid(child, 0)
    if status == 0:
      break
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != errors.AGAIN:
      sys.exit(f"the step failed: {status}")
    killed += 1
  print(killed)


if __name__ == "__main__":
  main(*sys.argv[1:])
