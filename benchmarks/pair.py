"""Our model as users load it, and its PyTorch twin: the same sizes, at tiny the same weights.

Used by the benchmarks of inference. tiny is the shipped shapes:gen2; 1b and 3b have random weights, which
take as long as trained ones.
"""

import argparse
from collections.abc import Callable
import dataclasses
import time
from typing import Any

import jax
import torch

from benchmarks import harness, jax_networks, torch_networks
from unilip_jax.infer import model as infer
from unilip_jax.models import presets


def arguments(description: str, batch_sizes: str) -> argparse.ArgumentParser:
  """What all benchmarks of inference take."""
  parser = argparse.ArgumentParser(
      description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="tiny", choices=presets.SIZES)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--batch_sizes", default=batch_sizes, help="comma-separated")
  parser.add_argument("--compile", action="store_true", help="also PyTorch under torch.compile")
  parser.add_argument("--compile_mode", default="default", help="of torch.compile")
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument(
      "--threads", type=int, default=1, help="cores that both may use, on a CPU; with one, CPU time counts")
  parser.add_argument("--suffix", default="", help="of the result's file name")
  return parser


@dataclasses.dataclass
class Pair:
  """Both sides.

  Attributes:
    ours: the public API.
    twin: PyTorch, in evaluation mode, without gradients.
    device: the twin's.
    clock: of harness.measure.
  """

  ours: infer.UniLIP
  twin: torch_networks.Unilip
  device: torch.device
  clock: Callable[[], float]


def make(args: argparse.Namespace) -> Pair:
  """Builds both on the device that JAX uses; `args` are of `arguments`.

  On a CPU both get one core by default and CPU time is counted: PyTorch's threads wait for each other at
  barriers, which on a machine that does anything else slows it up to a hundredfold.

  Raises:
    SystemExit: if JAX uses a device that PyTorch does not see here.
  """
  if not torch.cuda.is_available():
    harness.pin(args.threads)
  backend = jax.default_backend()
  if backend == "gpu" and not torch.cuda.is_available():
    raise SystemExit("JAX uses a GPU, PyTorch sees none: install a CUDA build of torch, or set "
                     "JAX_PLATFORMS=cpu")
  if backend not in ("cpu", "gpu"):
    raise SystemExit(f"compares on CPUs and GPUs; JAX uses {backend}")
  device = torch.device("cuda" if backend == "gpu" else "cpu")
  torch.set_num_threads(args.threads)
  tiny = args.size == "tiny"
  params, dims = jax_networks.weights_of(args.size, args.dtype)
  with torch.device("cpu" if tiny else device):
    torch.set_default_dtype(torch.float32 if tiny else getattr(torch, args.dtype))
    twin = torch_networks.Unilip(dims)
    torch.set_default_dtype(torch.float32)
  if tiny:
    torch_networks.load(twin, params)
  twin = twin.to(device, getattr(torch, args.dtype)).eval().requires_grad_(False)
  one_core = backend == "cpu" and args.threads == 1
  return Pair(jax_networks.model(params, dims, args.dtype), twin, device,
              time.process_time if one_core else time.perf_counter)


def sides(args: argparse.Namespace) -> list[tuple[str, Callable[[Any], Any]]]:
  """(name, what is done to each of the twin's functions) of PyTorch's ways to run."""
  found: list[tuple[str, Callable[[Any], Any]]] = [("PyTorch eager", lambda f: f)]
  if args.compile:
    found.append(("PyTorch compiled", lambda f: torch.compile(f, mode=args.compile_mode)))
  return found
