"""Looks at own data (data.own) before weights are read: facts in the log, a grid of images on disk."""

from absl import logging
from etils import epath
import jax
import ml_collections

from unilip_jax.common import atomic_io
from unilip_jax.data import pipeline, sources
from unilip_jax.data.own import look

FILE = "own_data.png"


def write(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Opens the own data of a run and writes `<workdir>/own_data.png` on process 0; nothing without data.own.

  Args:
    config: to which data/own/apply.py was applied.
    workdir: of the run; exists.

  Raises:
    ValueError: if more of the data is left out than data.max_bad_fraction, or no image can be read.
  """
  data = config.data
  if not data.own:
    return
  example = "edit" if data.edit_share == 1 else data.example
  row, = data.edit if example == "edit" else data.train
  source = pipeline.open_spec(data, sources.training_row(row)[0], example, workdir)
  if jax.process_index():
    return
  crop = data.crop if example == "reconstruct" else "stretch"
  seen = look.look(source, example, image_size=config.image_size, crop=crop,
                   flip=data.flip and example == "reconstruct", max_pixels=data.max_pixels,
                   seed=config.seed, buckets=data.buckets, scaled=data.decode == "scaled")
  file = epath.Path(workdir) / FILE
  atomic_io.write(file, seen.png)
  lines = "\n  ".join([*seen.lines, f"what the model gets: {file}"])
  logging.info("a first look at data.own=%s:\n  %s", data.own, lines)
