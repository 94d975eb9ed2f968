"""A text encoder that learns word embeddings only: each clause of a prompt is the sum of its words.

SANA is trained with Gemma, a text encoder that is already trained when the DiT starts. The tiny DiT
(configs/tiny_sana.py) is trained with this one. If the text encoder still has to learn which word belongs
to which object, the DiT learns to ignore the prompt.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


class Clauses(nn.Module):
  """Encodes a prompt as conditioning states, one for each clause.

  Attributes:
    rows: of the vocabulary.
    width: of the states.
    starts: ids of the tokens that begin a clause.
    count: number of clauses; tokens of any further clause belong to the last.
    dtype: of the states.
  """

  rows: int
  width: int
  starts: Sequence[int]
  count: int
  dtype: Any

  @nn.compact
  def __call__(self, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums the words of each clause.

    Args:
      tokens: int32[B, L].
      mask: bool[B, L]; False for pads.

    Returns:
      (dtype[B, count, width] states, bool[B, count]: False for clauses that the prompt does not have).
    """
    # About ten words make a clause: their sum has about unit variance.
    table = self.param("embedding", nn.initializers.normal(0.3), (self.rows, self.width))
    is_start = jnp.isin(tokens, jnp.asarray(self.starts, tokens.dtype))
    clause = jnp.minimum(jnp.cumsum(is_start & mask, axis=1), self.count - 1)
    member = jax.nn.one_hot(clause, self.count, dtype=jnp.bool_) & mask[..., None]
    words = table.astype(self.dtype)[tokens]
    return jnp.einsum("blw,blc->bcw", words, member.astype(self.dtype)), member.any(1)
