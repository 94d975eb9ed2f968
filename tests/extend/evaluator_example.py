"""An evaluator: how far the mean colour of a reconstruction is from that of its image."""

import math

import jax
import jax.numpy as jnp

from unilip_jax.data import pipeline
from unilip_jax.evals import base
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base


def make_evaluator(row: base.Row, context: base.Context) -> base.Evaluator:
  """Makes the evaluator of one set: mean absolute difference of mean colours, in 0..255."""
  config, task, mesh = context.config, context.task, context.mesh
  if not isinstance(task, tasks_base.ReconstructsImages):
    raise ValueError(f"eval.sets {row.name}: stage {config.stage} reconstructs no images")

  def score(params, pixels, mask):
    colours = [x.astype(jnp.float32).mean((1, 2)) for x in (pixels, task.reconstruct(params, pixels))]
    difference = jnp.abs(colours[0] - colours[1]).mean(-1)
    return jnp.where(mask, difference, 0.0).sum(), mask.sum()  # padding counts nothing

  score = jax.jit(activations.under(mesh, score), out_shardings=mesh_lib.replicated(mesh))

  def evaluate(params):
    batches = pipeline.eval_batches(
        config, row.name, "native", row.source, process_index=jax.process_index(),
        process_count=jax.process_count(), workdir=context.workdir)
    put = lambda x: jax.make_array_from_process_local_data(mesh_lib.batch_sharding(mesh), x)
    sums = jax.device_get([score(params, put(b["image"]), put(b["_mask"])) for b in batches])
    count = sum(int(n) for _, n in sums)
    return {f"{row.name}/mean_colour": math.fsum(float(s) for s, _ in sums) / count,
            f"{row.name}/count": float(count)}

  return evaluate
