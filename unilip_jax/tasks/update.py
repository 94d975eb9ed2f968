"""What every stage's step ends with: clip, AdamW, the schedule, the average, and the non-finite rule."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from unilip_jax import optimizer, rules
from unilip_jax import state as state_lib


def make_adamw(
    config: ml_collections.ConfigDict, columns: Mapping[str, rules.Columns], weight_decay: float
) -> optax.GradientTransformation:
  """AdamW with the config's constants; see optimizer.make_adamw."""
  return optimizer.make_adamw(
      columns, weight_decay=weight_decay,
      **{name: config.optimizer[name] for name in ("b1", "b2", "eps")})


def generator(
    config: ml_collections.ConfigDict, adamw: optax.GradientTransformation,
    state: state_lib.TrainState, grads: Any
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
  """One update of the trained weights and of their average.

  Args:
    config: uses optimizer.*, total_steps and ema_decay.
    adamw: of `make_adamw`.
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
  params = optimizer.apply(state.params, updates, lr)
  ema = state.ema
  if ema:
    ema = optimizer.ema_update(ema, params, optimizer.ema_decay(state.step, config.ema_decay))
  fields = {"params": params, "opt_state": opt_state, "ema": ema, "step": state.step + 1}
  return fields, {"grad_norm": norm, "lr": lr}


def keep_if_not_finite(
    new: state_lib.TrainState, old: state_lib.TrainState, metrics: Mapping[str, jax.Array]
) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
  """The new state, or the old one, step included, where a metric is not finite.

  Returns:
    (state, metrics with `finite` 1 or 0).
  """
  finite = jnp.stack([jnp.isfinite(v) for v in metrics.values()]).all()
  kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new.replace(frozen={}),
                      old.replace(frozen={})).replace(frozen=old.frozen)
  return kept, dict(metrics) | {"finite": finite.astype(jnp.float32)}
