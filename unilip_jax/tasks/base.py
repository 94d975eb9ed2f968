"""What every task answers about its weights and its state before there are any."""

import functools
from typing import Any

import jax

from unilip_jax import state as state_lib


class Task:
  """A task gives `init_modules(key)` and `make_state(modules, seed)`; their shapes follow."""

  @functools.cached_property
  def module_shapes(self) -> dict[str, Any]:
    """What `init_modules` makes, as ShapeDtypeStructs. Traced once: every start asks several times."""
    return jax.eval_shape(self.init_modules, jax.random.key(0))

  def state_shapes(self) -> state_lib.TrainState:
    """The first state, as ShapeDtypeStructs without shardings."""
    return jax.eval_shape(self.make_state, self.module_shapes, jax.ShapeDtypeStruct((), "uint32"))
