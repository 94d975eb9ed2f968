"""Finds what answers questions in training: a task's model, or a tokenizer and the LLM of `eval.llm`."""

from collections.abc import Callable, Mapping
from typing import Any

from unilip_jax.evals import base
from unilip_jax.models import unilip
from unilip_jax.tasks import base as tasks_base
from unilip_jax.tasks import understand, unilip_task
from unilip_jax.weights import restore

# Adds the weights that a task lacks to those of `model_params`.
Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def find_task(name: str, context: base.Context) -> tuple[unilip_task.UnilipTask, Complete]:
  """Returns (task whose model answers, function that completes the evaluated weights for it).

  Args:
    name: of the row in `eval.sets`, for errors.
    context: its task is of understanding or generation, or reconstructs: the LLM of `eval.llm` then reads
      its tower and mlp1.

  Raises:
    FileNotFoundError: if a task that reconstructs needs `eval.llm`, and that has no LLM.
    ValueError: for a task without a language model.
  """
  config, task = context.config, context.task
  if isinstance(task, tasks_base.ReconstructsImages):
    task = understand.Understand(config)
    abstract = {"llm": task.model_shapes()["llm"]}
    found = restore.find_modules([config.eval.llm] if config.eval.llm else [], abstract)
    if not found:
      raise FileNotFoundError(
          f"eval.sets {name}: questions need an LLM, and eval.llm={config.eval.llm!r} has none")
    llm = base.read_params(found, abstract, config, context.mesh, vocab=task.preset.llm.vocab)
    return task, lambda params: {module: params[module] for module in ("vision_tower", "mlp1")} | llm
  if not isinstance(task, unilip_task.UnilipTask) or not task.model_shapes().keys() >= set(
      unilip.UNDERSTANDING):
    raise ValueError(f"eval.sets {name}: stage {config.stage} answers no questions")
  return task, lambda params: {module: params[module] for module in unilip.UNDERSTANDING}
