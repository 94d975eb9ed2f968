"""PyTorch networks of the published 1b dimensions with random weights, and the same weights in JAX."""

import dataclasses
import gc
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from benchmarks import torch_networks
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.models import presets, unilip

DIMS = presets.get("1b").unilip
# Without the networks of images; the tokenizer of torch_networks.Unilip is then small and unused.
GENERATOR = dataclasses.replace(DIMS, tokenizer=presets.get("tiny").tokenizer)
PROMPT = 40  # tokens of the longest prompt


def model(remat: str = "none") -> unilip.Unilip:
  """The JAX networks in float32, with a policy of rematerialisation for LLM, connector and DiT."""
  return unilip.Unilip(DIMS, jnp.float32, remat_llm=remat, remat_dit=remat)


def randomise(network: nn.Module) -> nn.Module:
  """Adds noise to what the libraries initialise to constants (biases, scales); freezes the network."""
  generator = torch.Generator().manual_seed(0)
  for value in network.parameters():
    if value.numel() > 1 and (value == value.flatten()[0]).all():
      value.data.add_(0.02 * torch.randn(value.shape, generator=generator))
  return network.eval().requires_grad_(False)


def tables(*names: str) -> list[engine.Rule]:
  """Rows of the modules named, between torch_networks.Unilip and JAX."""
  return [r for r in torch_networks.tables(DIMS) if r.path.split("/")[0] in names]


def weights(network: nn.Module, prefix: str, *names: str) -> dict[str, Any]:
  """{module: JAX arrays} of a PyTorch network, whose tensors are then freed.

  Args:
    network: a part of torch_networks.Unilip.
    prefix: path of that part with a dot behind it.
    names: JAX modules that the network holds.
  """
  tensors = {prefix + name: value.numpy() for name, value in network.state_dict().items()
             if not name.endswith("pos_embed.pos_embed")}  # follows from the sizes
  flat = tree.flatten(engine.from_torch(tensors, tables(*names), None))
  del tensors
  for value in network.parameters():
    value.data = torch.empty(0)
  gc.collect()
  return tree.unflatten({path: jnp.asarray(flat.pop(path)) for path in list(flat)})


def generator_weights(network: torch_networks.Unilip) -> dict[str, Any]:
  """`weights` of a model of GENERATOR, part by part: that needs less memory than all at once."""
  params = {"queries": {"queries": jnp.asarray(network.queries.detach().numpy())}}
  for name in ("llm", "connector", "projector", "dit"):
    params |= weights(getattr(network, name), f"{name}.", name)
  return params


def normal(seed: int, *shape: int) -> np.ndarray:
  """float32 standard normal numbers."""
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def prompts(batch: int) -> tuple[np.ndarray, np.ndarray]:
  """(int32[batch, PROMPT] tokens, bool mask): each prompt after the first is five tokens shorter."""
  tokens = np.random.default_rng(0).integers(0, 150_000, (batch, PROMPT)).astype(np.int32)
  return tokens, np.arange(PROMPT)[None] < PROMPT - 5 * np.arange(batch)[:, None]


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
  """Copies as PyTorch tensors, integers as int64."""
  made = [torch.tensor(x) for x in arrays]
  return [x.long() if x.dtype == torch.int32 else x for x in made]
