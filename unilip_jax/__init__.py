"""UniLIP in JAX: one CLIP tokenizer that understands, reconstructs, generates and edits images."""

from typing import Any

from unilip_jax.common import buckets, start_time  # noqa: F401  (it takes the time)

buckets.register()  # gs:// in every process, those that decode data included
__all__ = ["UniLIP"]


def __getattr__(name: str) -> Any:
  """Loads `UniLIP` at its first touch: importing the package alone imports nothing heavy."""
  if name == "UniLIP":
    from unilip_jax.infer import UniLIP

    return UniLIP
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
