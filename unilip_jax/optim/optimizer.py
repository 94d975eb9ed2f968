"""AdamW with per-parameter rates and decay, the official cosine, clipping and the EMA's warm-up.

Reference: the official reconstruction training (torch.optim.AdamW, accelerate's clip_grad_norm_,
diffusers' EMAModel). The arithmetic follows PyTorch's, including the 1e-6 in the clipping factor.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from unilip_jax.common import tree
from unilip_jax.optim import param_table


def cosine(step: jax.Array, *, lr: float, end_lr: float, warmup: int, total: int) -> jax.Array:
  """Linear warm-up from 0, then a cosine from `lr` to `end_lr`.

  Args:
    step: int[] updates already made; the first update (0) has rate 0, as officially.
    lr: rate after the warm-up.
    end_lr: rate at `total`.
    warmup: updates of warm-up.
    total: updates at which the cosine ends; afterwards the rate stays at `end_lr`.

  Returns:
    float32[] learning rate.
  """
  step = jnp.asarray(step, jnp.float32)
  done = jnp.clip((step - warmup) / max(1, total - warmup), 0.0, 1.0)
  decayed = end_lr + (lr - end_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
  return jnp.where(step < warmup, lr * step / max(1, warmup), decayed)


def make_adamw(
    columns: Mapping[str, param_table.Columns], *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
  """AdamW whose update still has to be multiplied by −lr.

  The rate stays outside so that the step can log it, and so that the discriminator's own schedule can
  stand still. Decay is decoupled and scaled by the parameter's own rate, as in torch.optim.AdamW.

  Args:
    columns: {path: Columns} of the trained parameters.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: for parameters whose `decay` is True.
  """

  def by_column(fn):
    return lambda updates, params: tree.map_with_path(
        lambda path, u, p: fn(columns[path], u, p), updates, params)

  def decay(c, u, p):
    return u + weight_decay * p if c.decay else u

  def multiply(c, u, p):
    del p
    return u if c.lr == 1.0 else u * c.lr

  return optax.chain(
      optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
      optax.stateless(by_column(decay)),
      optax.stateless(by_column(multiply)))


def apply(params: tree.Tree, updates: tree.Tree, lr: jax.Array) -> tree.Tree:
  """params − lr · updates."""
  return jax.tree.map(lambda p, u: p - lr * u, params, updates)


def clip(grads: tree.Tree, max_norm: float) -> tuple[tree.Tree, jax.Array]:
  """Scales `grads` to a global norm of at most `max_norm`; returns (grads, float32[] norm before)."""
  norm = optax.tree.norm(grads)
  factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
  return jax.tree.map(lambda g: g * factor, grads), norm


def ema_decay(step: jax.Array, limit: float) -> jax.Array:
  """Decay of the average at the update after `step` updates: 0, then min(limit, (1+t)/(10+t)).

  Args:
    step: int[] updates made before this one; t equals it, so the first update copies.
    limit: upper bound, e.g. 0.999.
  """
  t = jnp.asarray(step, jnp.float32)
  return jnp.where(t > 0, jnp.minimum(limit, (1.0 + t) / (10.0 + t)), 0.0)


def ema_update(ema: tree.Tree, params: tree.Tree, decay: jax.Array) -> tree.Tree:
  """decay · ema + (1 − decay) · params; an exact copy where decay is 0."""
  return jax.tree.map(lambda e, p: p + decay * (e - p), ema, params)


def abstract_state(optimizer: optax.GradientTransformation, params: tree.Tree) -> Any:
  """Shapes of the optimizer's state for (abstract) `params`."""
  return jax.eval_shape(optimizer.init, params)
