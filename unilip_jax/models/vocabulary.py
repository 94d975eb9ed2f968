"""Rows of new tokens: UniLIP's training adds three to InternVL3's 151 674."""

from typing import Any

import jax.numpy as jnp


def extend(llm: Any, used: int, vocab: int) -> Any:
  """Sets rows `used` … `vocab` − 1 of embedding and head to the mean of the rows before them.

  transformers' resize_token_embeddings does the same and adds tiny noise.

  Args:
    llm: parameters of qwen2.Qwen2, with at least `vocab` rows.
    used: rows that were trained.
    vocab: rows that will be in use.
  """
  def extended(table, axis):
    index = jnp.arange(table.shape[axis])
    index = index[:, None] if axis == 0 else index[None]
    mean = jnp.where(index < used, table, 0).sum(axis, keepdims=True) / used
    return jnp.where((index >= used) & (index < vocab), mean, table)

  changed = {"embedding": extended(llm["embedding"], 0)}
  if "head" in llm:
    changed["head"] = extended(llm["head"], 1)
  return {**llm, **changed}
