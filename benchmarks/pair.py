"""The JAX model and its PyTorch reference: the same dimensions, at tiny the same weights.

Used by the benchmarks of inference. tiny is the included shapes:gen2; 1b and 3b have random weights, which
take as much time as trained ones.
"""

import argparse
from collections.abc import Callable
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import torch

from benchmarks import harness, jax_networks, torch_networks
from unilip_jax.infer import model as infer
from unilip_jax.models import presets, unilip


def arguments(description: str, batch_sizes: str) -> argparse.ArgumentParser:
  """Makes the parser with the arguments of all benchmarks of inference."""
  parser = argparse.ArgumentParser(
      description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="tiny", choices=presets.SIZES)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--batch_sizes", default=batch_sizes, help="comma-separated")
  parser.add_argument("--compile", action="store_true", help="also PyTorch with torch.compile")
  parser.add_argument("--compile_mode", default="default", help="of torch.compile")
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument(
      "--threads", type=int, default=1, help="cores of each side, on a CPU; with one, CPU time counts")
  parser.add_argument("--suffix", default="", help="of the result's file name")
  return parser


@dataclasses.dataclass
class Pair:
  """Holds both sides.

  Attributes:
    params: JAX weights by module name, on the device, in `dtype`.
    dims: of both models.
    dtype: "float32" | "bfloat16".
    torch_model: the PyTorch reference, in evaluation mode, without gradients.
    device: of `torch_model`.
    clock: of harness.measure.
  """

  params: dict[str, Any]
  dims: presets.UnilipDims
  dtype: str
  torch_model: torch_networks.Unilip
  device: torch.device
  clock: Callable[[], float]

  @property
  def image_size(self) -> int:
    """Pixels per side of the model's images."""
    return self.dims.tokenizer.vit.image_size

  def network(self) -> unilip.Unilip:
    """Makes the JAX networks, without arrays."""
    return unilip.Unilip(self.dims, jnp.dtype(self.dtype))

  def jax_model(self, batch_size: int) -> infer.UniLIP:
    """Makes the public API that runs `batch_size` examples at once."""
    return jax_networks.model(self.params, self.dims, self.dtype, batch_size=batch_size)


def make(args: argparse.Namespace) -> Pair:
  """Builds both sides on the device that JAX uses; `args` are of `arguments`.

  On a CPU each side gets one core by default and CPU time is counted: threads of PyTorch wait for each
  other at barriers, which slows it up to a hundredfold on a machine that runs anything else.

  Raises:
    SystemExit: if JAX uses a device that PyTorch cannot use.
  """
  if not torch.cuda.is_available():
    harness.pin(args.threads)
  backend = jax.default_backend()
  if backend == "gpu" and not torch.cuda.is_available():
    raise SystemExit("JAX uses a GPU, PyTorch finds none: install a CUDA build of torch, or set "
                     "JAX_PLATFORMS=cpu")
  if backend not in ("cpu", "gpu"):
    raise SystemExit(f"compares on CPUs and GPUs; JAX uses {backend}")
  device = torch.device("cuda" if backend == "gpu" else "cpu")
  torch.set_num_threads(args.threads)
  tiny = args.size == "tiny"
  params, dims = jax_networks.weights_of(args.size, args.dtype)
  with torch.device("cpu" if tiny else device):
    torch.set_default_dtype(torch.float32 if tiny else getattr(torch, args.dtype))
    model = torch_networks.Unilip(dims)
    torch.set_default_dtype(torch.float32)
  if tiny:
    torch_networks.load(model, params)
  model = model.to(device, getattr(torch, args.dtype)).eval().requires_grad_(False)
  params = jax.tree.map(lambda x: jnp.asarray(x, args.dtype), params)
  one_core = backend == "cpu" and args.threads == 1
  return Pair(params, dims, args.dtype, model, device,
              time.process_time if one_core else time.perf_counter)


def sides(args: argparse.Namespace) -> list[tuple[str, Callable[[Any], Any]]]:
  """Lists (name, wrapper of each PyTorch function): eager, and torch.compile if asked for."""
  wrappers: list[tuple[str, Callable[[Any], Any]]] = [("PyTorch eager", lambda f: f)]
  if args.compile:
    wrappers.append(("PyTorch compiled", lambda f: torch.compile(f, mode=args.compile_mode)))
  return wrappers
