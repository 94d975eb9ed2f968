"""A config's evaluators, on the state during training and on a checkpoint with --mode=eval."""

from collections.abc import Callable, Mapping
import json
import platform
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import ml_collections
import numpy as np

from unilip_jax import hosts, loading, sharding, tasks
from unilip_jax.evals import blocks, flow, reconstruction
from unilip_jax.tasks import understand

RESULTS = "results.json"
_LPIPS = "lpips"

Evaluator = Callable[[Any], dict[str, float]]


def evaluators(
    config: ml_collections.ConfigDict,
    task: Any,
    mesh: jax.sharding.Mesh,
    workdir: str,
    *,
    per_example: bool = False,
) -> dict[str, Evaluator]:
  """Builds the evaluators of `config.eval.sets`; each compiles once, at its first call.

  LPIPS is measured where `config.loss.perceptual_weights` names a folder that is there.

  Args:
    config: of the run.
    task: has `model` and `lpips`.
    mesh: the devices.
    workdir: of the run.
    per_example: also write every example's values to the workdir.

  Returns:
    {name: fn(params of the model) -> {"<name>/<metric>": value}}.

  Raises:
    ValueError: for doubled names, unknown protocols, a batch size that does not divide.
  """
  names = [row[0] for row in config.eval.sets]
  doubled = sorted({n for n in names if names.count(n) > 1})
  if doubled:
    raise ValueError(f"eval.sets: doubled names {doubled}; results are told apart by them")
  made, lpips_params = {}, None
  if any(row[1] in reconstruction.PROTOCOLS for row in config.eval.sets):
    lpips_params = _lpips_params(config, task, mesh)
  for row in map(tuple, config.eval.sets):
    if row[1] == "questions" and not hasattr(task, "answer"):
      made[row[0]] = _understanding(config, row, mesh)
    elif row[1] in blocks.PROTOCOLS:
      made[row[0]] = blocks.make_evaluator(config, row, task=task, mesh=mesh)
    elif row[1] in flow.PROTOCOLS:
      made[row[0]] = flow.make_evaluator(config, row, task=task, mesh=mesh, workdir=workdir)
    else:
      made[row[0]] = reconstruction.make_evaluator(
          config, row, task=task, mesh=mesh, workdir=workdir, lpips_params=lpips_params,
          per_example=per_example)
  return made


def run_all(evaluators: Mapping[str, Evaluator], params: Any) -> dict[str, float]:
  """Runs them one after another on the same weights: {"<name>/<metric>": value}."""
  results: dict[str, float] = {}
  for name, evaluator in evaluators.items():
    begin = time.monotonic()
    with hosts.waiting(f"the evaluation {name}"):
      scores = evaluator(params)
    logging.info("evaluation %s (%.1f s): %s", name, time.monotonic() - begin, "  ".join(
        f"{metric.removeprefix(name + '/')} {value:.4f}" for metric, value in scores.items()))
    results |= scores
  return results


def evaluate_checkpoint(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
  """`--mode=eval`: evaluates the newest checkpoint of `workdir`, or `config.init_from` without one.

  Writes `results.json` and per-example values into `workdir`.

  Returns:
    {"<name>/<metric>": value}.

  Raises:
    FileNotFoundError: if there are no weights, or they lack a part of the model.
    ValueError: if weights do not fit the model, with each path and both shapes.
  """
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  hosts.check_shared(folder)
  mesh = sharding.config_mesh(config)
  task = tasks.make(config)
  sources, step = _sources(config, folder)
  params = _model_params(config, task, mesh, sources)
  results = run_all(evaluators(config, task, mesh, workdir, per_example=True), params)
  if jax.process_index() == 0:
    device = jax.devices()[0]
    (folder / RESULTS).write_text(json.dumps({
        "metrics": {k: v if np.isfinite(v) else str(v) for k, v in results.items()},
        "checkpoint": ",".join(sources),
        "step": step,
        "config": config.to_dict(),
        "machine": {
            "devices": f"{jax.device_count()} × {device.device_kind}", "host": platform.machine(),
            "jax": jax.__version__, "python": platform.python_version()},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }, indent=2, default=str))
    logging.info("wrote %s", folder / RESULTS)
  return results


def _sources(
    config: ml_collections.ConfigDict, workdir: epath.Path
) -> tuple[list[str], int | None]:
  """Where the weights come from, and the step if it is known."""
  steps = workdir / "checkpoints"
  if steps.exists():
    found = [int(p.name) for p in steps.iterdir() if p.name.isdigit()]
    if found:
      return [str(steps / str(max(found)))], max(found)
  sources = loading.sources_of(config.init_from)
  if not sources:
    raise FileNotFoundError(
        f"{workdir} holds no checkpoint and init_from is empty; train there first, or set "
        "--config.init_from to a run or to imported weights")
  last = epath.Path(sources[-1])
  return sources, int(last.name) if last.name.isdigit() else None


def _model_params(config, task, mesh, sources: list[str]) -> dict[str, Any]:
  """The model's weights on the mesh."""
  abstract = task.model_shapes()
  found = loading.find(sources, abstract)
  missing = sorted(abstract.keys() - found.keys())
  if missing:
    raise FileNotFoundError(
        f"{', '.join(sources)} lack {', '.join(missing)}: stage {config.stage} needs all of "
        f"{', '.join(abstract)}; evaluate a trained run, or add a folder to init_from")
  return _read(found, abstract, config, mesh, vocab=task.preset.llm.vocab if "llm" in found else None)


def _read(found, abstract, config, mesh, *, vocab: int | None = None) -> dict[str, Any]:
  origins = ", ".join(dict.fromkeys(stored.origin for stored in found.values()))
  loading.check_shapes(found, abstract, f"{origins} does not fit size {config.size!r}")
  return loading.read(found, abstract, mesh, config.mesh.min_shard_size, vocab=vocab)


def _understanding(config, row, mesh) -> Evaluator:
  """Questions put to a tokenizer in training: its CLIP tower, read by the LLM of `eval.llm`.

  Raises:
    FileNotFoundError: if `eval.llm` names no LLM.
  """
  reader = understand.Understand(config)
  abstract = {"llm": reader.model_shapes()["llm"]}
  found = loading.find([config.eval.llm] if config.eval.llm else [], abstract)
  if not found:
    raise FileNotFoundError(
        f"eval.sets {row[0]}: questions need an LLM, and eval.llm={config.eval.llm!r} holds none")
  llm = _read(found, abstract, config, mesh, vocab=reader.preset.llm.vocab)
  evaluator = blocks.make_evaluator(config, row, task=reader, mesh=mesh)
  return lambda params: evaluator({name: params[name] for name in ("vision_tower", "mlp1")} | llm)


def _lpips_params(config, task, mesh) -> Any | None:
  """LPIPS weights on the mesh, or None where there are none."""
  source = config.loss.perceptual_weights
  if not source or not epath.Path(source).expanduser().exists():
    logging.info("evaluation without LPIPS: loss.perceptual_weights=%r is not there", source)
    return None
  found = loading.find([source], {_LPIPS: None})
  if not found:
    raise FileNotFoundError(f"loss.perceptual_weights={source} lacks the module {_LPIPS}")
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  abstract = jax.eval_shape(task.lpips.init, jax.random.key(0), image, image)["params"]
  return _read(found, {_LPIPS: abstract}, config, mesh)[_LPIPS]
