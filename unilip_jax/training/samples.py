"""Image grids during training: what the model makes of the same few evaluation examples."""

from collections.abc import Callable
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax.common import image_grid
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import pipeline, sources
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib

FOLDER = "samples"


def make(
    config: ml_collections.ConfigDict, task: Any, mesh: jax.sharding.Mesh, workdir: str
) -> Callable[[int, Any], bytes]:
  """A function that writes `samples/step_<step>.png` and returns the PNG.

  Args:
    config: uses sample_count, sample_set and eval.batch_size.
    task: its `preview(params, batch)` gives the grid's rows, {label: uint8[B, R, R, 3]}.
    mesh: the devices.
    workdir: of the run.

  Returns:
    fn(step, params) -> bytes of a grid.
  """
  preview = None
  batch = None

  def sample(step: int, params: Any) -> bytes:
    nonlocal preview, batch
    if preview is None:
      preview = jax.jit(activations.under(mesh, task.preview), out_shardings=mesh_lib.replicated(mesh))
      batch = _first_batch(config, mesh, workdir)
    rows = {name: np.asarray(images)[:config.sample_count]
            for name, images in preview(params, batch).items()}
    png = image_grid.paired_rows(rows)
    if jax.process_index() == 0:
      folder = epath.Path(workdir) / FOLDER
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f"step_{step:08d}.png").write_bytes(png)
    return png

  return sample


def _first_batch(config, mesh, workdir) -> dict[str, jax.Array]:
  """The first evaluation batch of `sample_set`, split over the devices."""
  (example,), spec = sources.named_row("sample_set", config.sample_set, ("example",))
  batches = pipeline.eval_batches(
      config, "samples", "native", spec, process_index=jax.process_index(),
      process_count=jax.process_count(), workdir=workdir, example=example)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(mesh_lib.batch_sharding(mesh), x),
      batch_lib.device_part(next(iter(batches))))
