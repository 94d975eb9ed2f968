"""Computes the target latents of the generation stages before training, if `data.latents_dir` is set.

The latents are a function of the image alone (no augmentation): after one pass over the data, no later pass
runs the encoder. A fingerprint of the encoder's weights, kind, precision and image size is stored with the
latents, so that latents of another encoder are refused.
"""

import hashlib
import json
from typing import Any

from absl import logging
from etils import epath
import jax
import ml_collections
import numpy as np
import tqdm

from unilip_jax.common import atomic_io
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import latents as latents_lib
from unilip_jax.data import pipeline, sources
from unilip_jax.multihost import session
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base
from unilip_jax.weights import checksums


def ensure(
    config: ml_collections.ConfigDict, task: Any, params: Any, mesh: jax.sharding.Mesh, workdir: str
) -> None:
  """Completes the latents of every source of `data.train` and `data.edit`.

  Args:
    config: uses data.*, eval.batch_size, image_size and generate.*.
    task: Generate.
    params: all of the model's weights.
    mesh: the devices.
    workdir: of the run.

  Raises:
    latents.StaleError: if those on disk are another encoder's.
    ValueError: if the stage trains the encoder, or has no encoder.
  """
  if not config.data.latents_dir:
    return
  if not isinstance(task, tasks_base.MatchesFlow):
    raise ValueError(f"data.latents_dir is set, but stage {config.stage} has no target latents")
  trained = sorted({path.split("/")[0] for path, columns in task.columns.items()
                    if columns.train and path.split("/")[0] in task.target_modules})
  if trained:
    raise ValueError(f"data.latents_dir is set, but {', '.join(trained)} train in this stage: latents "
                     "on disk would become stale; leave it empty")
  mesh_lib.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
  mark = fingerprint(config, task, params)
  encode = jax.jit(activations.under(mesh, task.encode), out_shardings=mesh_lib.batch_sharding(mesh))
  for name in batch_lib.part_sizes(config):
    for row in config.data.edit if name == "edit" else config.data.train:
      spec, _ = sources.training_row(row)
      folder = latents_lib.folder_of(config.data.latents_dir, name, spec)
      if latents_lib.check_layout(folder, mark) is None:
        logging.info("computing the target latents of %s in %s", spec, folder)
        _make(config, task, params, mesh, workdir, encode, (name, spec), folder, mark)


def fingerprint(config: ml_collections.ConfigDict, task: Any, params: Any) -> str:
  """Returns hex digits that change with everything that the target latents depend on."""
  values = checksums.checksums({name: params[name] for name in task.target_modules})
  settings = [config.generate.target, config.image_size, config.dtype, values]
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _make(config, task, params, mesh, workdir, encode, source, folder: epath.Path, mark: str) -> None:
  """Encodes a source in one pass; existing files of an interrupted pass are kept."""
  processes, process = jax.process_count(), jax.process_index()
  batches = pipeline.target_batches(
      config, *source, process_index=process, process_count=processes, workdir=workdir)
  layout = latents_lib.Layout(
      fingerprint=mark, count=batches.count, shape=task.latent_shape(1)[1:], dtype=config.dtype,
      batch=config.eval.batch_size, processes=processes)
  split = mesh_lib.batch_sharding(mesh)
  files = -(-len(batches) // latents_lib.FILE_BATCHES)
  with tqdm.tqdm(total=batches.count, unit=" latents", disable=process > 0) as bar:
    for number in range(files):
      first = number * latents_lib.FILE_BATCHES
      last = min(first + latents_lib.FILE_BATCHES, len(batches))
      file = folder / layout.file(number, process)
      file.parent.mkdir(parents=True, exist_ok=True)
      # All processes compute a batch together: if one lacks its file, all compute it again.
      if "False" in session.all_gather_text("the latents are complete", str(file.exists())):
        with session.waiting(f"target latents, file {number}"):
          rows = [_encoded(encode, params, split, batch) for batch in batches.between(first, last)]
        atomic_io.write(file, b"".join(layout.encode(r) for r in rows))
      bar.update(min(last * layout.batch, batches.count) - first * layout.batch)
  session.all_gather_text("all target latents")
  if process == 0:
    latents_lib.write_layout(folder, layout)
  session.all_gather_text("target latents marked")  # before a process opens them


def _encoded(encode, params, split, batch) -> np.ndarray:
  """Encodes a batch and returns this process's latents; NaN for broken records."""
  pixels = jax.make_array_from_process_local_data(split, batch["image"])
  latents = encode(params, pixels)
  shards = sorted(latents.addressable_shards, key=lambda s: s.index[0].start or 0)
  local = np.concatenate([np.asarray(s.data, np.float32) for s in shards])
  local[~batch["_mask"]] = np.nan
  return local
