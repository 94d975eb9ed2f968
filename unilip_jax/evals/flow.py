"""Validation loss of the generation stages: flow matching on pairs that training does not see.

Protocols:

  flow_t2i   prompts and images
  flow_edit  instructions, images before and after

Times and noises of a batch depend on its number alone, so that one set gives one number, run after
run. Prompts are never dropped. The mean is exact over the set. Beside it stands the loss with each
prompt taken from the next example of its batch: a model that ignores prompts has the same loss twice.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from unilip_jax import batch as batch_lib
from unilip_jax import sharding
from unilip_jax.data import pipeline

PROTOCOLS = {"flow_t2i": "t2i", "flow_edit": "edit"}
_SEED = 0


def make_evaluator(
    config: ml_collections.ConfigDict, row: tuple[str, str, str, str], *, task: Any,
    mesh: jax.sharding.Mesh, workdir: str
) -> Callable[[Any], dict[str, float]]:
  """An evaluator of one set.

  Args:
    config: uses eval.batch_size, eval.max_examples, image_size, text.* and data.*.
    row: (name, protocol, kind, path) of config.eval.sets.
    task: Generate.
    mesh: the devices.
    workdir: of the run.

  Returns:
    fn(params) -> {"<name>/flow_loss": mean, "<name>/wrong_prompt_loss": mean with others' prompts,
    "<name>/count": examples}.

  Raises:
    ValueError: for a task without this loss, or a batch that does not divide over the devices; from
      the evaluator: if the set is empty.
  """
  name, protocol, kind, path = row
  if not hasattr(task, "losses"):
    raise ValueError(f"eval.sets {name}: stage {config.stage} has no flow-matching loss")
  sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")

  def score(params, batch, number):
    key, mask = jax.random.fold_in(jax.random.key(_SEED), number), batch["_mask"]
    shifted = next_valid(mask)
    wrong = batch | {name: batch[name][shifted] for name in ("tokens", "token_mask")}
    sums = [jnp.sum(jnp.where(mask, task.losses(params, b, key), 0.0)) for b in (batch, wrong)]
    return *sums, jnp.sum(mask)

  score = jax.jit(sharding.under(mesh, score), out_shardings=sharding.replicated(mesh))

  def evaluate(params: Any) -> dict[str, float]:
    batches = pipeline.eval_batches(
        config, (name, "native", kind, path), process_index=jax.process_index(),
        process_count=jax.process_count(), workdir=workdir, example=PROTOCOLS[protocol])
    sums = []
    for number, batch in enumerate(batches):
      placed = jax.tree.map(
          lambda x: jax.make_array_from_process_local_data(sharding.batch(mesh), x),
          batch_lib.device_part(batch))
      sums.append(score(params, placed, jnp.uint32(number)))
    sums = jax.device_get(sums)
    count = sum(int(n) for *_, n in sums)
    if not count:
      raise ValueError(f"eval.sets {name}: {path} holds no example")
    mean = lambda i: math.fsum(float(row[i]) for row in sums) / count
    return {f"{name}/flow_loss": mean(0), f"{name}/wrong_prompt_loss": mean(1),
            f"{name}/count": float(count)}

  return evaluate


def next_valid(mask: jax.Array) -> jax.Array:
  """int32[B]: for each True of bool[B] the index of the next one, the first after the last."""
  order = jnp.argsort(~mask, stable=True)
  rank = jnp.cumsum(mask) - 1
  return order[(rank + 1) % jnp.maximum(mask.sum(), 1)]
