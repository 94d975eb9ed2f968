"""Makes the README's image of what the included weights do: the first examples of the test split, marked.

  python -m experiments.readme_figure [--checkpoint=shapes:gen3] [--out=docs/images/included_weights.png]

No example is left out. ✓ and ✗ are automatic marks: the verifier reads the scene of every image
(unilip_jax/shapes/verify.py), and questions.correct compares answers.
"""

import argparse
from collections.abc import Sequence
import io
import textwrap
from typing import IO

from etils import epath
import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np
from PIL import Image

from experiments import showcase
from unilip_jax.common import command_options, errors
from unilip_jax.infer.model import UniLIP

_COLUMNS = 6  # one prompt of each category
_OPTIONS = {"guidance": 4.5, "steps": 20, "seed": 0}
_ROWS = {  # {ability: (explanation, images one above the other)}
    "reconstruct": ("input,\nreconstruction", 2),
    "generate": ("image from\na prompt", 1),
    "edit": ("before,\nafter", 2),
    "chat": ("question,\nanswer", 1)}
_MARKS = {True: ("✓", "#1b7837"), False: ("✗", "#b2182b")}
_GAP = 6  # pixels between the two images of an example
_WRAP = 23  # characters in a line of text


def figure(entries: Sequence[showcase.Entry], title: str) -> matplotlib.figure.Figure:
  """Draws entries of showcase.examples, one ability a row, white behind everything."""
  with matplotlib.rc_context({"font.size": 8.5}):
    page = matplotlib.figure.Figure(figsize=(10, 10.6), layout="constrained", facecolor="white")
    grid = page.subplots(
        len(_ROWS), 1 + _COLUMNS, width_ratios=[0.75] + [1] * _COLUMNS,
        height_ratios=[images + 0.3 for _, images in _ROWS.values()])
    for row, (ability, (explanation, _)) in zip(grid, _ROWS.items()):
      row[0].text(0, 0.58, ability, fontsize=12, fontweight="bold", va="bottom")
      row[0].text(0, 0.55, explanation, color="#5f6368", va="top")
      for axes in row:
        axes.axis("off")
      for axes, entry in zip(row[1:], [e for e in entries if e["ability"] == ability]):
        _example(axes, entry)
    page.suptitle(title, fontsize=10, color="#3c4043")
  return page


def _example(axes: matplotlib.axes.Axes, entry: showcase.Entry) -> None:
  """Draws one example: its images one above the other, under prompt, mark and answer."""
  images = [image for _, image in entry["images"]]
  gap = np.full((_GAP, images[0].shape[1], 3), 255, np.uint8)
  axes.imshow(np.concatenate([part for image in images for part in (image, gap)][:-1]))
  mark, colour = _MARKS[entry["right"]]
  answer = textwrap.wrap(f"{mark} {entry['said']}", _WRAP)
  axes.set_title("\n".join([*textwrap.wrap(entry["asked"], _WRAP), *answer]), fontsize=8.5, color=colour)


def save(page: matplotlib.figure.Figure, file: IO[bytes]) -> None:
  """Writes a PNG, compressed as far as possible."""
  buffer = io.BytesIO()
  page.savefig(buffer, format="png", dpi=100)
  Image.open(buffer).convert("RGB").save(file, "PNG", optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.readme_figure", description=__doc__.split("\n\n")[0])
  parser.add_argument("--checkpoint", default="shapes:gen3", type=command_options.path)
  parser.add_argument("--out", type=command_options.path, default="docs/images/included_weights.png")
  args = parser.parse_args(argv)
  model = UniLIP.load(args.checkpoint, "float32", batch_size=_COLUMNS)
  entries = list(showcase.examples(model, _COLUMNS, _OPTIONS))
  title = (f"{args.checkpoint}, trained on two CPU cores: the first {_COLUMNS} test examples of each kind; "
           "✓ and ✗ are automatic marks")
  with epath.Path(args.out).open("wb") as f:
    save(figure(entries, title), f)
  print(args.out)


if __name__ == "__main__":
  errors.run_command(main)
