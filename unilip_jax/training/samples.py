"""Writes image grids during training: the model's outputs for a few fixed evaluation examples."""

from collections.abc import Callable
import functools
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax.common import image_grid
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import pipeline, sources
from unilip_jax.tasks import base

FOLDER = "samples"


def make(
    config: ml_collections.ConfigDict, task: base.Task, mesh: jax.sharding.Mesh, workdir: str
) -> Callable[[int, Any], bytes]:
  """Makes the function that writes `samples/step_<step>.png` and returns the PNG.

  Args:
    config: uses sample_count, sample_set and eval.batch_size.
    task: makes the rows of the grid.
    mesh: the devices.
    workdir: of the run.

  Returns:
    fn(step, params) -> bytes of a grid.
  """
  # The first grid reads the examples and builds the programs: a run without grids needs neither.
  preview = functools.cache(lambda: task.make_preview(mesh))
  batch = functools.cache(lambda: _first_batch(config, workdir))

  def sample(step: int, params: Any) -> bytes:
    rows = {name: images[:config.sample_count] for name, images in preview()(params, batch()).items()}
    png = image_grid.paired_rows(rows)
    if jax.process_index() == 0:
      folder = epath.Path(workdir) / FOLDER
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f"step_{step:08d}.png").write_bytes(png)
    return png

  return sample


def _first_batch(config: ml_collections.ConfigDict, workdir: str) -> dict[str, np.ndarray]:
  """Reads the first evaluation batch of `sample_set`, complete on every process."""
  (example,), spec = sources.named_row("sample_set", config.sample_set, ("example",))
  batches = pipeline.eval_batches(
      config, "samples", "native", spec, process_index=0, process_count=1, workdir=workdir,
      example=example)
  return batch_lib.device_part(next(iter(batches)))
