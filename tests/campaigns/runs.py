"""Functions for the children of a fork server: the commands, at micro size."""

from typing import Any

from absl import logging
import jax

from tests import micro
from tests.campaigns import phases
from unilip_jax import evaluate
from unilip_jax import train as train_lib
from unilip_jax.convert import cli as convert_cli
from unilip_jax.data.prepare import __main__ as prepare_cli


def train(cache: str, stage: str, images: str, workdir: str, fields: dict[str, Any]) -> None:
  """Trains a micro run.

  Args:
    cache: folder of compiled programs.
    stage: of the config.
    images: folder of the data, unless `fields` name other data.
    workdir: of the run.
    fields: see `config`.
  """
  phases.announce()
  train_lib.train(config(cache, stage, images, fields), workdir)


def evaluates(cache: str, stage: str, images: str, workdir: str, fields: dict[str, Any]) -> None:
  """Evaluates a micro run; arguments as of `train`."""
  phases.announce()
  evaluate.evaluate_checkpoint(config(cache, stage, images, fields), workdir)


def config(cache: str, stage: str, images: str, fields: dict[str, Any]):
  """Returns a micro config, and sets this process up for it.

  Args:
    cache: see `train`.
    stage: see `train`.
    images: see `train`.
    fields: overrides as of micro.config; lists become tuples. `sleep` are seconds before each batch.
  """
  micro.install()
  micro.skip_flops()
  logging.set_verbosity(logging.INFO)
  jax.config.update("jax_disable_most_optimizations", True)
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  fields = {name: _with_tuples(value) for name, value in fields.items()}
  micro._slow_down(fields.pop("sleep", 0.0))
  return micro.config(stage, images, **fields)


def convert(*arguments: str) -> None:
  """Runs `unilip convert`; raises SystemExit with its status."""
  phases.announce()
  raise SystemExit(convert_cli.main(arguments))


def prepare(*arguments: str) -> None:
  """Runs `unilip data`."""
  phases.announce()
  prepare_cli.main(arguments)


def _with_tuples(value: Any) -> Any:
  return tuple(_with_tuples(v) for v in value) if isinstance(value, list) else value
