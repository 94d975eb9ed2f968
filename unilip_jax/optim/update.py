"""Parts of every stage's train step: gradients (over micro-batches), the update, the non-finite rule."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from unilip_jax.data import batch as batch_lib
from unilip_jax.optim import optimizer, param_table
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import activations


def make_adamw(
    config: ml_collections.ConfigDict, columns: Mapping[str, param_table.Columns], weight_decay: float
) -> optax.GradientTransformation:
  """Makes AdamW with the config's constants, see optimizer.make_adamw."""
  return optimizer.make_adamw(
      columns, weight_decay=weight_decay,
      **{name: config.optimizer[name] for name in ("b1", "b2", "eps")})


def check_grad_accum_steps(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError if `grad_accum_steps` does not suit the config."""
  count = config.grad_accum_steps
  if count < 1:
    raise ValueError(f"grad_accum_steps={count} is below 1; 1 takes the batch at once")
  if count > 1 and config.gan.weight > 0:
    raise ValueError(
        f"grad_accum_steps={count} with a GAN: LeCam compares means over the complete batch, which "
        "micro-batches do not have; set grad_accum_steps=1, and remat.vit and remat.decoder or a larger "
        "mesh for memory, or gan.weight=0")
  for name, size in batch_lib.part_sizes(config).items():
    if size % count:
      raise ValueError(f"{name or 'batch_size'}={size} does not divide into grad_accum_steps={count} "
                       "micro-batches")


def gathered(config: ml_collections.ConfigDict, params: Any, dtype: str = "") -> Any:
  """Gathers the weights of a step's loss, once, if mesh.gather is "step"; else returns them as they are.

  Args:
    config: uses mesh.gather, mesh.min_shard_size and dtype.
    params: tree with the parameters' paths.
    dtype: in which their network computes; config.dtype by default.
  """
  if config.mesh.gather == "layer":
    return params
  return activations.gather_params(
      params, config.mesh.min_shard_size, jnp.dtype(dtype or config.dtype))


def gathered_frozen(config: ml_collections.ConfigDict, params: Any, dtype: str = "") -> Any:
  """Gathers frozen weights as `gathered`, unless they are replicated."""
  return params if config.mesh.frozen_sharding == "replicated" else gathered(config, params, dtype)


def scattered(config: ml_collections.ConfigDict, grads: Any) -> Any:
  """Splits gradients as the parameters, in the dtype that they have; returns float32."""
  grads = activations.constrain_params(grads, config.mesh.min_shard_size)
  return jax.tree.map(lambda x: x.astype(jnp.float32), grads)


def gradients(
    config: ml_collections.ConfigDict,
    loss_fn: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]], params: Any, batch: Any
) -> tuple[Any, dict[str, jax.Array]]:
  """Computes a loss's gradient and metrics, at once or averaged over A micro-batches.

  Micro-batch a holds the examples a, a + A, a + 2A, …: each device has its share of every micro-batch, and
  no example moves between devices.

  Args:
    config: uses grad_accum_steps, and what `gathered` uses. Weights are gathered before the first
      micro-batch.
    loss_fn: (params, batch) -> (float32[] loss, {metric: float32[]}), all means over examples. Random
      numbers and normalisers that depend on the complete batch must be entries of the batch.
    params: float32.
    batch: dicts of arrays [B, ...]; grad_accum_steps divides each B.

  Returns:
    (gradients like params, float32, sharded as params; metrics).
  """
  gradient = jax.grad(loss_fn, has_aux=True)
  weights = gathered(config, params)
  count = config.grad_accum_steps
  if count == 1:
    grads, metrics = gradient(weights, batch)
    return scattered(config, grads), metrics

  def micro_batches(x):
    x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
    return activations.constrain(x, "micro_batches")

  def add(total, part):
    part = jax.tree.map(lambda x: activations.constrain(x, "batch"), part)
    grads, metrics = gradient(weights, part)
    total = jax.tree.map(
        lambda t, x: t + x.astype(jnp.float32), total, (scattered(config, grads), metrics))
    return total, None

  parts = jax.tree.map(micro_batches, batch)
  _, metrics = jax.eval_shape(loss_fn, weights, jax.tree.map(lambda x: x[0], parts))
  grads, metrics = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), (params, metrics))
  total, _ = jax.lax.scan(add, (scattered(config, grads), metrics), parts)
  return jax.tree.map(lambda x: x / count, total)


def apply_gradients(
    config: ml_collections.ConfigDict, adamw: optax.GradientTransformation,
    state: state_lib.TrainState, grads: Any
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
  """Clips gradients, and updates the trained weights and their EMA.

  Args:
    config: uses optimizer.*, total_steps and ema_decay.
    adamw: from `make_adamw`.
    state: before the update.
    grads: like state.params.

  Returns:
    ({params, opt_state, ema, step}: fields to replace, {grad_norm, lr}).
  """
  grads, norm = optimizer.clip(grads, config.optimizer.clip_norm)
  updates, opt_state = adamw.update(grads, state.opt_state, state.params)
  lr = optimizer.cosine(
      state.step, lr=config.optimizer.lr, end_lr=config.optimizer.end_lr,
      warmup=config.optimizer.warmup_steps, total=config.total_steps)
  params = optax.tree.add_scale(state.params, -lr, updates)
  ema = state.ema
  if ema:
    ema = optimizer.ema_update(ema, params, optimizer.ema_decay(state.step, config.ema_decay))
  fields = {"params": params, "opt_state": opt_state, "ema": ema, "step": state.step + 1}
  return fields, {"grad_norm": norm, "lr": lr}


def keep_if_not_finite(
    new: state_lib.TrainState, old: state_lib.TrainState, metrics: Mapping[str, jax.Array]
) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
  """Selects the new state, or the old one, step included, if a metric is not finite.

  Returns:
    (state, metrics with `finite` 1 or 0).
  """
  finite = jnp.stack([jnp.isfinite(v) for v in metrics.values()]).all()
  state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new.replace(frozen={}),
                       old.replace(frozen={})).replace(frozen=old.frozen)
  return state, dict(metrics) | {"finite": finite.astype(jnp.float32)}
