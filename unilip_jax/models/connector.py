"""From the frozen LLM to the DiT's conditioning: learnable queries and a bidirectional connector.

UniLIP section 3.2, dual condition: the hidden states of the prompt and of the queries go through copies of
the LLM's last layers without the causal mask, then through one projection.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

CONDITIONS = ("both", "queries", "hidden")


class Queries(nn.Module):
  """The learnable queries, N(0, 1) at the start: parameter [Q, D]."""

  count: int
  width: int

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param("queries", nn.initializers.normal(1.0), (self.count, self.width))


def from_llm(llm: Any, depth: int) -> dict[str, Any]:
  """Copies the connector's initial weights from the LLM: its last `depth` layers and its final norm.

  Args:
    llm: parameters of qwen2.Qwen2.
    depth: number of layers.
  """
  stack = llm["stack"]
  return {"layers": jax.tree.map(lambda x: jnp.array(x[-depth:]), stack["layers"]),
          "norm": jax.tree.map(jnp.array, stack["norm"])}
