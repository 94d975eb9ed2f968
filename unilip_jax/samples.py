"""Image grids during training: the same few evaluation images, before and after."""

from collections.abc import Callable
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax import grids, sharding
from unilip_jax.data import pipeline

FOLDER = "samples"


def make(
    config: ml_collections.ConfigDict, task: Any, mesh: jax.sharding.Mesh, workdir: str
) -> Callable[[int, Any], bytes]:
  """A function that writes `samples/step_<step>.png` and returns the PNG.

  Args:
    config: uses sample_count, eval.sets (the first one) and eval.batch_size.
    task: with `reconstruct`.
    mesh: the devices.
    workdir: of the run.

  Returns:
    fn(step, params) -> bytes of a grid with rows input | reconstruction.
  """
  reconstruct = jax.jit(task.reconstruct, out_shardings=sharding.replicated(mesh))
  inputs = None

  def sample(step: int, params: Any) -> bytes:
    nonlocal inputs
    if inputs is None:
      inputs = _first_images(config, mesh, workdir)
    count = config.sample_count
    outputs = np.asarray(reconstruct(params, inputs))[:count]
    png = grids.reconstruction_grid(np.asarray(_replicate(inputs, mesh))[:count], outputs)
    if jax.process_index() == 0:
      folder = epath.Path(workdir) / FOLDER
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f"step_{step:08d}.png").write_bytes(png)
    return png

  return sample


def _replicate(x: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
  return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(x)


def _first_images(config, mesh, workdir) -> jax.Array:
  """The first evaluation batch at the training size, split over the devices."""
  name, _, kind, path = config.eval.sets[0]
  batches = pipeline.eval_batches(
      config, (name, "native", kind, path), process_index=jax.process_index(),
      process_count=jax.process_count(), workdir=workdir)
  batch = next(iter(batches))
  return jax.make_array_from_process_local_data(sharding.batch(mesh), batch["image"])
