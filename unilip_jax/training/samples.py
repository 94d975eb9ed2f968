"""Writes image grids during training: the model's outputs for a few fixed evaluation examples."""

from collections.abc import Callable
import functools
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax.common import atomic_io, image_grid
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import pipeline, sources
from unilip_jax.multihost import session
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
    count = min(config.sample_count, int(batch()["_mask"].sum()))  # a small set is padded to a batch
    rows = {name: images[:count] for name, images in preview()(params, batch()).items()}
    png = image_grid.paired_rows(rows)
    if jax.process_index() == 0:
      path = _path(workdir, step)
      path.parent.mkdir(parents=True, exist_ok=True)
      atomic_io.write(path, png)
    return png

  return sample


def exists(workdir: str, step: int) -> bool:
  """Tells whether the grid of a step is written; every process returns process 0's answer."""
  own = jax.process_index() == 0 and _path(workdir, step).exists()
  return "True" in session.all_gather_text("the samples exist", str(own))


def _path(workdir: str, step: int) -> epath.Path:
  return epath.Path(workdir) / FOLDER / f"step_{step:08d}.png"


def _first_batch(config: ml_collections.ConfigDict, workdir: str) -> dict[str, np.ndarray]:
  """Reads the first evaluation batch of `sample_set`, complete on every process."""
  (example,), spec = sources.named_row("sample_set", config.sample_set, ("example",))
  batches = pipeline.eval_batches(
      config, "samples", "native", spec, process_index=0, process_count=1, workdir=workdir,
      example=example)
  return batch_lib.device_part(next(iter(batches)))
