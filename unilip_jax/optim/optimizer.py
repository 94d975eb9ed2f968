"""AdamW with per-parameter rates and decay, the official cosine, clipping and the EMA's warm-up.

Reference: the official reconstruction training (torch.optim.AdamW, accelerate's clip_grad_norm_,
diffusers' EMAModel). Moments and norm are optax's. Clipping, the schedule and the EMA are written here,
since optax's differ in the last bits of float32; each docstring names the difference.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from unilip_jax.common import tree
from unilip_jax.optim import param_table


def cosine(step: jax.Array, *, lr: float, end_lr: float, warmup: int, total: int) -> jax.Array:
  """Computes the learning rate: linear warm-up from 0, then a cosine from `lr` to `end_lr`.

  optax.warmup_cosine_decay_schedule is the same curve with its float32 operations in another order: about
  half of its values differ in the last bits, so that a run would not resume bit-exactly.

  Args:
    step: int[] number of earlier updates; the first update (0) has rate 0, as in the official code.
    lr: rate after the warm-up.
    end_lr: rate at `total`.
    warmup: updates of warm-up.
    total: updates at which the cosine ends; afterwards the rate stays at `end_lr`.

  Returns:
    float32[] learning rate.
  """
  step = jnp.asarray(step, jnp.float32)
  fraction = jnp.clip((step - warmup) / max(1, total - warmup), 0.0, 1.0)
  decayed = end_lr + (lr - end_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * fraction))
  return jnp.where(step < warmup, lr * step / max(1, warmup), decayed)


def make_adamw(
    columns: Mapping[str, param_table.Columns], *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
  """Makes AdamW without its last factor −lr, which the caller applies.

  The caller logs the rate, and the discriminator's schedule counts the discriminator's own updates.
  Decay is decoupled and scaled by the parameter's own rate, as in torch.optim.AdamW.

  Args:
    columns: {path: Columns} of the trained parameters.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: of parameters whose `decay` is True.
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


def clip(grads: tree.Tree, max_norm: float) -> tuple[tree.Tree, jax.Array]:
  """Scales `grads` to a global norm of at most `max_norm`; returns (grads, float32[] norm before).

  The factor is torch's min(1, max_norm / (norm + 1e-6)); optax.clip_by_global_norm has no 1e-6 and divides
  each gradient by the norm first.
  """
  norm = optax.tree.norm(grads)
  factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
  return jax.tree.map(lambda g: g * factor, grads), norm


def ema_decay(step: jax.Array, limit: float) -> jax.Array:
  """Computes the EMA's decay at update t: 0 at t = 0, then min(limit, (1 + t) / (10 + t)).

  Args:
    step: int[] t, the number of earlier updates; the first update copies the parameters.
    limit: upper bound, e.g. 0.999.

  Returns:
    float32[] decay.
  """
  t = jnp.asarray(step, jnp.float32)
  return jnp.where(t > 0, jnp.minimum(limit, (1.0 + t) / (10.0 + t)), 0.0)


def ema_update(ema: tree.Tree, params: tree.Tree, decay: jax.Array) -> tree.Tree:
  """Computes params + decay · (ema − params); an exact copy of `params` where decay is 0.

  optax.incremental_update rounds another form, decay · ema + (1 − decay) · params.
  """
  return jax.tree.map(lambda e, p: p + decay * (e - p), ema, params)
