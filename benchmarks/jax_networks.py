"""The JAX model as users load it, at every size; needs no PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.data import text as text_lib
from unilip_jax.infer import model as infer
from unilip_jax.models import presets, unilip
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources


def weights_of(size: str, dtype: str) -> tuple[dict[str, Any], presets.UnilipDims]:
  """Returns (parameters, dimensions): tiny is the included shapes:gen2, 1b and 3b are random.

  Random weights take as much time as trained ones.
  """
  if size == "tiny":
    stored = sources.open_weights("shapes:gen2")
    return stored.load(unilip.MODULES), dims_lib.unilip_dims(stored.model)
  dims = presets.get(size).unilip
  network = unilip.Unilip(dims, jnp.dtype(dtype))
  return jax.jit(lambda key: jax.tree.map(
      lambda x: x.astype(dtype), network.init(key)))(jax.random.key(0)), dims


def model(
    params: dict[str, Any], dims: presets.UnilipDims, dtype: str, *, batch_size: int,
    int8: bool = False
) -> infer.UniLIP:
  """Makes the public API with the weights of `weights_of`."""
  return infer.UniLIP(params, dims.tokenizer, dims=dims, text=text_lib.Text("shapes"), system="",
                      dtype=dtype, batch_size=batch_size, int8=int8)
