"""Computes the validation loss of the generation stages: flow matching on pairs outside the training set.

Protocols:

  flow_t2i   prompts and images
  flow_edit  instructions, images before and after

Times and noise of a batch depend on its number alone, so that a model has the same loss in every run.
Prompts are never dropped. The mean is exact over the set. A second loss gives each image the prompt of the
next example in its batch: both losses are equal for a model that ignores prompts.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.data import batch as batch_lib
from unilip_jax.data import pipeline
from unilip_jax.evals import base
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base

PROTOCOLS = {"flow_t2i": "t2i", "flow_edit": "edit"}
_SEED = 0


def make_evaluator(row: base.Row, context: base.Context) -> base.Evaluator:
  """Makes the evaluator of one set.

  Args:
    row: its protocol is a key of PROTOCOLS.
    context: its config's eval.batch_size, eval.max_examples, image_size, text.* and data.* are used.

  Returns:
    An evaluator of flow_loss, the mean loss, and wrong_prompt_loss, the mean with the next prompts.

  Raises:
    ValueError: for a task without this loss; from the evaluator: if the set is empty.
  """
  config, task, mesh, name = context.config, context.task, context.mesh, row.name
  if not isinstance(task, tasks_base.MatchesFlow):
    raise ValueError(f"eval.sets {name}: stage {config.stage} has no flow-matching loss")

  def score(params, batch, number):
    key, mask = jax.random.fold_in(jax.random.key(_SEED), number), batch["_mask"]
    shifted = next_valid(mask)
    wrong = batch | {name: batch[name][shifted] for name in ("tokens", "token_mask")}
    sums = [jnp.sum(jnp.where(mask, task.losses(params, b, key), 0.0)) for b in (batch, wrong)]
    return *sums, jnp.sum(mask)

  score = jax.jit(activations.under(mesh, score), out_shardings=mesh_lib.replicated(mesh))

  def evaluate(params: Any) -> dict[str, float]:
    batches = pipeline.eval_batches(
        config, name, "native", row.source, process_index=jax.process_index(),
        process_count=jax.process_count(), workdir=context.workdir, example=PROTOCOLS[row.protocol])
    sums = []
    for number, batch in enumerate(batches):
      placed = jax.tree.map(
          lambda x: jax.make_array_from_process_local_data(mesh_lib.batch_sharding(mesh), x),
          batch_lib.device_part(batch))
      sums.append(score(params, placed, jnp.uint32(number)))
    sums = jax.device_get(sums)
    count = sum(int(n) for *_, n in sums)
    if not count:
      raise ValueError(f"eval.sets {name}: {row.source} holds no example")
    mean = lambda i: math.fsum(float(r[i]) for r in sums) / count
    return {f"{name}/flow_loss": mean(0), f"{name}/wrong_prompt_loss": mean(1),
            f"{name}/count": float(count)}

  return evaluate


def next_valid(mask: jax.Array) -> jax.Array:
  """Returns int32[B]: for each True of bool[B] the index of the next True, cyclically."""
  order = jnp.argsort(~mask, stable=True)
  rank = jnp.cumsum(mask) - 1
  return order[(rank + 1) % jnp.maximum(mask.sum(), 1)]
