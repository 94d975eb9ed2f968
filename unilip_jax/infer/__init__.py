"""Uses a trained model in Python (`UniLIP`) and on the command line (`python -m unilip_jax.infer`)."""

from typing import Any

__all__ = ["UniLIP"]


def __getattr__(name: str) -> Any:
  """Loads `UniLIP` at its first touch, so that the command line answers --help without JAX."""
  if name == "UniLIP":
    from unilip_jax.infer.model import UniLIP

    return UniLIP
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
