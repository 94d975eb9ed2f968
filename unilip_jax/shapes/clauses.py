"""A text encoder that has nothing to learn but words: each clause of a prompt is the sum of its words.

What SANA has in Gemma, a reader that knows its language before the DiT starts, the tiny stand-in of
SANA (configs/tiny_sana.py) has in this. With a reader that still has to learn which word belongs to
which object, a DiT learns to do without.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


class Clauses(nn.Module):
  """Conditioning states of a prompt, one for each clause.

  Attributes:
    rows: of the vocabulary.
    width: of the states.
    starts: ids of the tokens that open a clause.
    count: clauses; what follows the last start belongs to the last clause.
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
      (dtype[B, count, width] states, bool[B, count]: False for clauses that a prompt lacks).
    """
    # About ten words make a clause: their sum has about unit variance.
    table = self.param("embedding", nn.initializers.normal(0.3), (self.rows, self.width))
    opens = jnp.isin(tokens, jnp.asarray(self.starts, tokens.dtype))
    clause = jnp.minimum(jnp.cumsum(opens & mask, axis=1), self.count - 1)
    member = jax.nn.one_hot(clause, self.count, dtype=jnp.bool_) & mask[..., None]
    words = table.astype(self.dtype)[tokens]
    return jnp.einsum("blw,blc->bcw", words, member.astype(self.dtype)), member.any(1)
