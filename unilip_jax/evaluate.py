"""Evaluates a config's sets: the state during training, and a checkpoint with --mode=eval."""

from collections.abc import Mapping
import platform
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax import tasks
from unilip_jax.common import json_file, paths
from unilip_jax.configs import checks
from unilip_jax.evals import base
from unilip_jax.multihost import session
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import preflight, run_files
from unilip_jax.weights import language, restore, sources

RESULTS = "results.json"


def run_all(evaluators: Mapping[str, base.Evaluator], params: Any) -> dict[str, float]:
  """Runs evaluators one after another on the same weights; returns {"<name>/<metric>": value}."""
  results: dict[str, float] = {}
  for name, evaluator in evaluators.items():
    begin = time.monotonic()
    with session.waiting(f"the evaluation {name}"):
      scores = evaluator(params)
    logging.info("evaluation %s (%.1f s): %s", name, time.monotonic() - begin, "  ".join(
        f"{metric.removeprefix(name + '/')} {value:.4f}" for metric, value in scores.items()))
    results |= scores
  return results


def evaluate_checkpoint(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
  """Evaluates the newest checkpoint of `workdir`, or `config.init_from` if there is none.

  Writes `results.json` and per-example values into `workdir`.

  Returns:
    {"<name>/<metric>": value}.

  Raises:
    FileNotFoundError: if there are no weights, or they lack a module.
    ValueError: if weights do not fit the model, with each path and both shapes.
  """
  checks.check(config)
  workdir = paths.absolute(workdir, "--workdir")
  folder = epath.Path(workdir)
  mesh = mesh_lib.config_mesh(config)
  task = tasks.make(config)
  preflight.check_evaluation(config, mesh, workdir)
  language.bind_tokenizer(config, workdir)
  places, step = _find_weights(config, folder)
  logging.info("evaluating %s", ", ".join(places))
  run_files.open_folder(workdir)
  evaluators = base.make_evaluators(config, task, mesh, workdir, per_example=True)
  params = _read_model(config, task, mesh, places)
  results = run_all(evaluators, params)
  if jax.process_index() == 0:
    device = jax.devices()[0]
    json_file.write(folder / RESULTS, {
        "metrics": {k: v if np.isfinite(v) else str(v) for k, v in results.items()},
        "checkpoint": ",".join(places),
        "step": step,
        "config": config.to_dict(),
        "machine": {
            "devices": f"{jax.device_count()} × {device.device_kind}", "host": platform.machine(),
            "jax": jax.__version__, "python": platform.python_version()},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    })
    logging.info("wrote %s", folder / RESULTS)
  return results


def _find_weights(
    config: ml_collections.ConfigDict, workdir: epath.Path) -> tuple[list[str], int | None]:
  """Returns the paths of the weights, and their step if they are from one step."""
  if steps := sources.steps_of(workdir):
    return [str(workdir / sources.STEPS / str(steps[-1]))], steps[-1]
  places = restore.sources_of(config.init_from)
  if not places:
    raise FileNotFoundError(
        f"{workdir} holds no checkpoint and init_from is empty; train there first, or set "
        "--config.init_from to a run or to imported weights")
  last = epath.Path(places[-1])
  return places, int(last.name) if last.name.isdigit() else None


def _read_model(config, task, mesh, places: list[str]) -> dict[str, Any]:
  """Reads the model's weights onto the mesh."""
  abstract = task.model_shapes()
  origins = restore.find_modules(places, abstract)
  missing = sorted(abstract.keys() - origins.keys())
  if missing:
    raise FileNotFoundError(
        f"{', '.join(places)} lack {', '.join(missing)}: stage {config.stage} needs all of "
        f"{', '.join(abstract)}; evaluate a trained run, or add a folder to init_from")
  return base.read_params(origins, abstract, config, mesh,
                          vocab=task.preset.llm.vocab if "llm" in origins else None)
