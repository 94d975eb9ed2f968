"""The training state: one frozen struct, which each step maps to the next."""

from typing import Any

import flax.struct
import jax

Tree = Any


@flax.struct.dataclass
class TrainState:
  """Holds all that a run needs to continue bit-exactly; the data position is stored next to it.

  Attributes:
    step: int32[] number of updates.
    seed: words of the run's seed (ops/seeds.py), uint32[] below 2**32; a step's randomness is
      fold_in(fold_in(key(seed), step), purpose).
    params: trained parameters of the model, float32.
    opt_state: the optimizer's state of `params`.
    ema: the EMA of `params`; empty without one.
    gan: empty, or {"params", "opt_state", "updates" int32[], "lecam" averages} of the discriminator.
    frozen: weights that never change; saved once per run, not per checkpoint.
    old: empty, or the old policy of reward training: what samples its rollouts, a tree like `params`.
  """

  step: jax.Array
  seed: jax.Array
  params: Tree
  opt_state: Tree
  ema: Tree
  gan: Tree
  frozen: Tree
  old: Tree = flax.struct.field(default_factory=dict)
