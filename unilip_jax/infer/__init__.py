"""Uses a trained model in Python (`UniLIP`) and on the command line (`python -m unilip_jax.infer`)."""

from unilip_jax.infer.model import UniLIP

__all__ = ["UniLIP"]
