"""From the frozen LLM to the DiT's conditioning: learnable queries and a bidirectional connector.

UniLIP section 3.2, dual condition: the prompt's hidden states and the queries' go through copies of
the LLM's last layers, this time without the causal mask, and one projection.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from unilip_jax import presets
from unilip_jax.models import layers, qwen2

CONDITIONS = ("both", "queries", "hidden")


class Connector(nn.Module):
  """Bidirectional layers over prompt and queries, then the projection to the DiT's captions.

  Attributes:
    llm: sizes of a layer.
    dims: number of layers and queries.
    caption_width: of the result.
    dtype: of the computation.
    remat: policy of one layer.
  """

  llm: presets.LlmDims
  dims: presets.ConnectorDims
  caption_width: int
  dtype: Any
  remat: str = "none"

  @nn.compact
  def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
    """Mixes and projects.

    Args:
      states: [B, S, D]: the LLM's final-normed states, mlp1's features at image positions.
      mask: bool[B, S]; False for pads.

    Returns:
      dtype[B, S, caption_width]; rows of pads mean nothing.
    """
    x, _ = qwen2.Stack(
        self.llm, self.dims.depth, self.dtype, self.remat, causal=False, name="stack")(states, mask)
    return layers.Dense(self.caption_width, self.dtype, name="projector")(x)


class Queries(nn.Module):
  """The learnable queries, N(0, 1) at the start: parameter [Q, D]."""

  count: int
  width: int

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param("queries", nn.initializers.normal(1.0), (self.count, self.width))


def from_llm(llm: Any, depth: int) -> dict[str, Any]:
  """The connector's first weights: the LLM's last layers and final norm.

  Args:
    llm: parameters of qwen2.Qwen2.
    depth: number of layers.

  Returns:
    {"stack": …}, without the projector.
  """
  stack = llm["stack"]
  return {"stack": {
      "layers": jax.tree.map(lambda x: jnp.array(x[-depth:]), stack["layers"]),
      "norm": jax.tree.map(jnp.array, stack["norm"])}}
