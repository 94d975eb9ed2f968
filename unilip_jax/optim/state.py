"""The training state: one frozen struct that a step maps to the next."""

from typing import Any

import flax.struct
import jax

Tree = Any


@flax.struct.dataclass
class TrainState:
  """Everything a run needs to continue, bit for bit, but the data position (an integer beside it).

  Attributes:
    step: int32[] updates made.
    seed: uint32[] of the run; a step's randomness is fold_in(fold_in(key(seed), step), purpose).
    params: trained parameters of the model, float32.
    opt_state: their optimizer's state.
    ema: their average, or an empty dict if none is kept.
    gan: empty, or {"params", "opt_state", "updates" int32[], "lecam" averages} of the discriminator.
    frozen: weights that never change: saved once per run, not per checkpoint.
  """

  step: jax.Array
  seed: jax.Array
  params: Tree
  opt_state: Tree
  ema: Tree
  gan: Tree
  frozen: Tree
