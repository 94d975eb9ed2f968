"""Functions that are compiled at their first call for a shape, or loaded from disk (program_store.py)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from unilip_jax.ops import program_key, program_store


class Program:
  """Calls a function as `jax.jit` does, with compiled programs that later processes load.

  The function is pure, and all that it closes over is written down by program_key.describe: networks and
  numbers, no arrays.
  """

  def __init__(
      self, function: Callable[..., Any], *, static_argnames: Sequence[str] = (),
      donate_argnames: Sequence[str] = (), out_shardings: Any = None):
    """Compiles nothing yet; arguments as of `jax.jit`. Static arguments are passed by name."""
    self._function, self._static = function, frozenset(static_argnames)
    self._jitted = jax.jit(
        function, static_argnames=tuple(static_argnames), donate_argnames=tuple(donate_argnames),
        out_shardings=out_shardings)
    leaves, tree = jax.tree.flatten(out_shardings)
    self._options = [sorted(donate_argnames), str(tree), list(map(program_key.placement, leaves))]
    self._compiled: dict[Any, Any] = {}

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    static = {name: kwargs.pop(name) for name in self._static & kwargs.keys()}
    leaves, tree = jax.tree.flatten((args, kwargs))
    if program_store.folder() is None or any(isinstance(x, jax.core.Tracer) for x in leaves):
      return self._jitted(*args, **kwargs, **static)
    key = (tree, tuple(sorted(static.items())), jax.config.jax_default_matmul_precision,
           jax.config.jax_enable_x64, *(
               (x.shape, x.dtype, getattr(x, "weak_type", False), getattr(x, "sharding", None))
               for x in leaves))
    if key not in self._compiled:
      self._compiled[key] = program_store.program(
          self._function.__qualname__, [self._function, self._options, static], (args, kwargs),
          lambda: self._jitted.lower(*args, **kwargs, **static), lambda lowered: lowered.compile())
    return self._compiled[key](*args, **kwargs)
