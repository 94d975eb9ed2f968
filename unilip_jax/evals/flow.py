"""Validation loss of the generation stages: flow matching on pairs that training does not see.

Protocols:

  flow_t2i   prompts and images
  flow_edit  instructions, images before and after

Times and noises of a batch depend on its number alone, so that one set gives one number, run after
run. Prompts are never dropped. The mean is exact over the set.
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
    fn(params) -> {"<name>/flow_loss": mean, "<name>/count": examples}.

  Raises:
    ValueError: for a task without this loss, or a batch that does not divide over the devices; from
      the evaluator: if the set is empty.
  """
  name, protocol, kind, path = row
  if not hasattr(task, "losses"):
    raise ValueError(f"eval.sets {name}: stage {config.stage} has no flow-matching loss")
  sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")

  def score(params, batch, number):
    losses = task.losses(params, batch, jax.random.fold_in(jax.random.key(_SEED), number))
    return jnp.sum(jnp.where(batch["_mask"], losses, 0.0)), jnp.sum(batch["_mask"])

  score = jax.jit(score, out_shardings=sharding.replicated(mesh))

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
    count = sum(int(n) for _, n in sums)
    if not count:
      raise ValueError(f"eval.sets {name}: {path} holds no example")
    return {f"{name}/flow_loss": math.fsum(float(s) for s, _ in sums) / count,
            f"{name}/count": float(count)}

  return evaluate
