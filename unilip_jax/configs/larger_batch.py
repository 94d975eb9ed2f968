"""The fields of a run that follow from a larger batch than the recipe's, for reconstruction stages.

With k times the images an update, AdamW's learning rates grow by √k (Malladi et al., arXiv 2205.10287).
What is counted in updates shrinks by k, so that as many images are seen. Decays of averages are taken to
the power of k (Busbridge et al., arXiv 2307.13813), so that an average reaches back over as many images.
AdamW's own decays stay: b1 of the same rule would be below 0 from k = 11 on.
"""

import math
from typing import Any

from unilip_jax.configs import base

_RATES = ("optimizer.lr", "optimizer.end_lr", "gan.lr", "gan.end_lr")
_UPDATES = ("total_steps", "optimizer.warmup_steps", "gan.start_step", "gan.warmup_steps")
_DECAYS = ("ema_decay", "gan.lecam_decay")


def fields(config: Any, batch_size: int) -> dict[str, Any]:
  """Returns {field: value} of a run with `batch_size` images an update instead of the config's.

  Args:
    config: of a reconstruction stage, with the recipe's batch.
    batch_size: a multiple of the config's.

  Raises:
    ValueError: for another batch, or a stage whose batch is a mixture.
  """
  k, rest = divmod(batch_size, config.batch_size)
  if rest or config.task != "reconstruct":
    raise ValueError(f"{config.stage}: batch_size={batch_size} is no multiple of {config.batch_size} "
                     "images of a reconstruction stage")
  value = lambda name: base.field(config, name)
  return {"batch_size": batch_size,
          **{name: float(f"{value(name) * math.sqrt(k):.4g}") for name in _RATES},
          **{name: round(value(name) / k) for name in _UPDATES},
          **{name: round(value(name) ** k, 6) for name in _DECAYS}}
