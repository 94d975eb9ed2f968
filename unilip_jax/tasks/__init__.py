"""What a stage computes: initialisation, the train step and the evaluation functions."""

import importlib
from typing import Any

_TASKS = {"reconstruct": "Reconstruct", "generate": "Generate", "understand": "Understand"}


def make(config: Any) -> Any:
  """The task that `config.task` names.

  Raises:
    ValueError: for an unknown name.
  """
  if config.task not in _TASKS:
    raise ValueError(f"unknown task {config.task!r}; known: {', '.join(_TASKS)}")
  module = importlib.import_module(f"unilip_jax.tasks.{config.task}")
  return getattr(module, _TASKS[config.task])(config)
