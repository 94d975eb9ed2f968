"""Identifies what a task computes by values that are known before it is traced (ops/program_store.py)."""

import hashlib
from typing import Any

import ml_collections

from unilip_jax.data import text as text_lib

# Fields that say when a run reads, writes and logs.
_OUTSIDE = ("checkpoint_every_steps", "compilation_cache", "eval", "init_from", "keep_checkpoints",
            "keep_every_steps", "log", "log_every_steps", "profile_steps", "resume", "root",
            "sample_every_steps")


def of(task: type, config: ml_collections.ConfigDict) -> list[Any]:
  """Returns a task's class and the fields of its config that its computation may depend on.

  Fields that say when a run reads, writes and logs are left out. A tokenizer counts by its content.
  """
  fields = {name: value for name, value in config.to_dict().items() if name not in _OUTSIDE}
  if config.data.example != "reconstruct":
    file = text_lib.tokenizer_file(config.text.tokenizer)
    fields["text"]["tokenizer"] = (
        hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else config.text.tokenizer)
  return [task, fields]
