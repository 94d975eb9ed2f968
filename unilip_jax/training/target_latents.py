"""Computes the target latents of the generation stages before training, if `data.latents_dir` is set.

The latents are a function of the image alone (no augmentation): after one pass over the data, no later pass
runs the encoder. A fingerprint of the encoder's weights, kind, precision and image size is stored with the
latents, so that latents of another encoder are refused.
"""

import dataclasses
import hashlib
import json
from typing import Any

from absl import logging
from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax.common import atomic_io, progress_bar
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import latent_rows, pipeline, sources
from unilip_jax.data import latents as latents_lib
from unilip_jax.multihost import session
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base
from unilip_jax.training import ledger
from unilip_jax.weights import fingerprints


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
    latents.StaleError: if those on disk are another encoder's or of other data.
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
      images = pipeline.target_source(config, name, spec, workdir=workdir)
      folder, layout = latents_lib.find(config.data.latents_dir, name, spec, images)
      session.assert_equal_across_hosts(
          f"the data of {spec}", str(folder), "give all hosts the same data for its latents")
      if layout is None or not _is_valid(images, spec, folder, layout, mark):
        logging.info("computing the target latents of %s in %s", spec, folder)
        with ledger.during("latents"):
          _make(config, task, params, mesh, encode, images, spec, folder, mark)


def _is_valid(
    images: sources.Source, spec: sources.SourceSpec, folder: epath.Path, layout: latent_rows.Layout,
    mark: str) -> bool:
  """Returns whether latents on disk are complete.

  Raises:
    latents.StaleError: if they are another encoder's or of other data.
  """
  latents_lib.check_fingerprint(folder, layout, mark)
  _, problems = latent_rows.check_files(folder, layout)
  if "damaged" in session.all_gather_text("latents' files", "damaged" if problems else ""):
    logging.warning("latents in %s are damaged and computed again: %s", folder, "; ".join(problems[:5]))
    return False
  times = session.all_gather_text("times of the data", latents_lib.times(images))
  if set(times) != {layout.times}:
    logging.warning("the files of %s have other times or sizes than when their latents were computed; "
                    "comparing %d images with %s", spec, layout.count, folder)
    change = latents_lib.first_change(images, folder, layout, jax.process_index(), jax.process_count())
    if changes := [c for c in session.all_gather_text("changed images", change) if c]:
      raise latents_lib.StaleError(
          f"{folder} holds latents of other images than {spec} has now, e.g. {changes[0]}; delete that "
          "folder, or set another data.latents_dir")
    if jax.process_index() == 0:
      latent_rows.write_layout(folder, dataclasses.replace(layout, times=times[0]))
  return True


def fingerprint(config: ml_collections.ConfigDict, task: Any, params: Any) -> str:
  """Returns hex digits that change with everything that the target latents depend on."""
  values = fingerprints.checksums({name: params[name] for name in task.target_modules})
  settings = [config.generate.target, config.image_size, config.dtype, values]
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _make(
    config, task, params, mesh, encode, images, spec, folder: epath.Path, mark: str) -> None:
  """Encodes a source in one pass; existing files of an interrupted pass are kept."""
  processes, process = jax.process_count(), jax.process_index()
  batches = pipeline.target_batches(
      config, images, process_index=process, process_count=processes)
  times = session.all_gather_text("times of the data", latents_lib.times(images))[0]
  layout = latent_rows.Layout(
      fingerprint=mark, data=latents_lib.mark(images), times=times, started=times or "unknown",
      source=str(spec), count=batches.count, shape=tuple(task.latent_shape(1)[1:]), dtype=config.dtype,
      batch=config.eval.batch_size, processes=processes, file_batches=latents_lib.FILE_BATCHES)
  split = mesh_lib.batch_sharding(mesh)
  files = -(-len(batches) // latents_lib.FILE_BATCHES)
  with progress_bar.bar(total=batches.count, unit=" latents", disable=process > 0) as bar:
    for number in range(files):
      first = number * latents_lib.FILE_BATCHES
      last = min(first + latents_lib.FILE_BATCHES, len(batches))
      file = folder / layout.file(number, process)
      file.parent.mkdir(parents=True, exist_ok=True)
      # All processes compute a batch together: if one lacks its file, all compute it again.
      complete = file.exists() and file.stat().length == layout.file_bytes(number)
      if "False" in session.all_gather_text("the latents are complete", str(complete)):
        with session.waiting(f"target latents, file {number}"):
          rows = [_encoded(encode, params, split, batch) for batch in batches.between(first, last)]
        atomic_io.write(file, b"".join(layout.encode(*r) for r in rows))
      bar.update(min(last * layout.batch, batches.count) - first * layout.batch)
  session.all_gather_text("all target latents")
  if process == 0:
    latent_rows.write_layout(folder, layout)
  session.all_gather_text("target latents marked")  # before a process opens them


def _encoded(encode, params, split, batch) -> tuple[np.ndarray, np.ndarray]:
  """Encodes a batch; returns this process's latents, NaN for broken records, and its images' hashes."""
  pixels = jax.make_array_from_process_local_data(split, batch["image"])
  latents = encode(params, pixels)
  local = mesh_lib.local_rows(latents).astype(np.float32)
  local[~batch["_mask"]] = np.nan
  return local, batch["_digest"]
