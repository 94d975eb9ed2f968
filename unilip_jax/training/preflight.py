"""Checks what a run reads and writes before weights are read, a step is compiled or a file is written.

configs/checks.py checks values alone. Here names are looked up in the registry, and files and folders on
disk. Nothing is opened for long: tars are indexed and arrays are read later.
"""

import jax
import ml_collections

from unilip_jax.common import paths, registry
from unilip_jax.configs import base as config_base
from unilip_jax.configs import checks
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import sources
from unilip_jax.evals import base as evals_base
from unilip_jax.rewards import base as rewards
from unilip_jax.tasks import base as tasks_base
from unilip_jax.training import sinks
from unilip_jax.weights import restore
from unilip_jax.weights import sources as sources_of_weights

_FOLDERS = ("data.render_dir", "data.latents_dir", "data.index_dir", "compilation_cache")


def check_training(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, workdir: str) -> None:
  """Checks a training run.

  Args:
    config: of the run.
    mesh: the devices.
    workdir: of the run; need not exist.

  Raises:
    ValueError: for values, names and rows that cannot be meant, and folders that cannot be written to.
    FileNotFoundError: for data and weights that do not exist.
  """
  checks.check(config)
  sinks.check(config)
  _check_start(config, workdir)
  task = registry.find("task", config.task)
  if isinstance(task, type) and issubclass(task, tasks_base.LearnsFromRewards):
    rewards.check(rewards.read_terms(config.reward.terms))
  check_evaluation(config, mesh, workdir)
  batch_lib.check_divides(config, mesh)
  rows = [("data.train", row) for row in config.data.train if config.data.edit_share < 1]
  if config.data.edit_share:
    rows += [("data.edit", row) for row in config.data.edit]
    if not config.data.edit:
      raise ValueError(f"data.edit_share={config.data.edit_share}, but data.edit has no rows; add one, or "
                       "set --config.data.edit_share=0")
  if not rows or (config.data.edit_share < 1 and not config.data.train):
    raise ValueError("data.train has no rows; name the training data (docs/data.md)")
  for field, row in rows:
    sources.check_source(sources.training_row(row)[0], field, edits=field == "data.edit")
  if config.sample_every_steps and config.sample_set:
    (_,), spec = sources.named_row("sample_set", config.sample_set, ("example",))
    sources.check_source(spec, "sample_set")


def _check_start(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Checks that what a new run starts from exists; reads no array."""
  if sources_of_weights.has_checkpoint(workdir):
    return
  if config.resume:
    try:
      sources_of_weights.newest_step(config.resume)
    except FileNotFoundError as error:
      raise FileNotFoundError(f"--config.resume={config.resume}: {error}") from error
    return
  for path in restore.sources_of(config.init_from):
    sources_of_weights.open_weights(path)


def check_evaluation(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, workdir: str) -> None:
  """Checks an evaluation; errors as of `check_training`."""
  checks.check(config)
  paths.output_folder(workdir, "--workdir")
  for field in _FOLDERS:
    folder = config_base.field(config, field)
    if folder:
      paths.output_folder(folder, f"--config.{field}")
  for row in evals_base.check_rows(config, mesh):
    if row.protocol != "benchmark":  # its kind is no data source; its evaluator reads the items first
      sources.check_source(row.source, f"eval.sets, {row.name}")
