"""Measures convolutions with gradients on this machine: two formulations each, and PyTorch's.

  python -m benchmarks.convolutions [--repeats=10] [--threads=1]
  python -m benchmarks.convolutions --size=1b --dtype=bfloat16 --batch_size=8      # one GPU

The reason for ops/conv.py's choice per backend. At tiny, shapes are those of decoder and
discriminator: depthwise ones of DC-AE's GLU-MBConv (3×3) and multi-scale attention (5×5), dense ones of
ResBlocks, upsampling and the discriminator. Of the dense ones the gradients alone are timed, by themselves
and inside a lax.cond. At 1b they are the depthwise ones at 448 px: DC-AE's, the DiT's gated convolution
(3×3 over 5760 channels) and one of ConvNeXt (7×7). Writes benchmarks/results/convolutions_<device>.json.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness
from unilip_jax.ops import conv, cpu

# Pixels per side, channels, features (0: depthwise), side of the kernel.
_CASES = {
    "tiny": ((8, 1024, 0, 3), (4, 1024, 0, 3), (8, 384, 0, 5), (4, 384, 0, 5),
             (32, 32, 32, 3), (32, 32, 64, 3), (64, 16, 12, 3), (112, 3, 16, 5), (112, 16, 16, 3)),
    "1b": ((16, 5760, 0, 3), (16, 8192, 0, 3), (32, 8192, 0, 3), (64, 4096, 0, 3),
           (16, 3072, 0, 5), (32, 3072, 0, 5), (64, 1536, 0, 5), (56, 96, 0, 7))}
_DEPTHWISE = {"shifted products": cpu.depthwise, "grouped convolution": conv.depthwise_grouped}
_DENSE = {"products": cpu.conv, "XLA's": conv.conv_xla}


def _depthwise(function, x, kernel, dtype):
  gradient = jax.jit(jax.grad(lambda x, k: jnp.square(function(x, k)).sum(), argnums=(0, 1)))
  x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
  return lambda: jax.block_until_ready(gradient(x, kernel))


def _dense(function, x, kernel, dy, nested, dtype):
  def gradient(x, kernel, dy):
    return jax.vjp(function, x, kernel)[1](dy)

  def under_a_condition(on, x, kernel, dy):
    return jax.lax.cond(on, gradient, lambda x, kernel, dy: (x, kernel), x, kernel, dy)

  arrays = ([jnp.asarray(True)] if nested else []) + [jnp.asarray(a, dtype) for a in (x, kernel, dy)]
  run = jax.jit(under_a_condition if nested else gradient)
  return lambda: jax.block_until_ready(run(*arrays))


def _torch(x, kernel, dy, dtype, device):
  """Makes PyTorch's side; on a GPU in the memory format that its convolutions are fastest in."""
  groups = kernel.shape[3] if dy is None else 1
  memory = torch.contiguous_format if device == "cpu" else torch.channels_last
  tensor = lambda a: torch.from_numpy(a.copy()).to(
      device, getattr(torch, dtype)).contiguous(memory_format=memory)
  x = tensor(np.moveaxis(x, -1, 1)).requires_grad_()
  kernel = tensor(kernel.transpose(3, 2, 0, 1)).requires_grad_()
  forward = lambda: torch.nn.functional.conv2d(
      x, kernel, padding=kernel.shape[-1] // 2, groups=groups)
  wait = (lambda: None) if device == "cpu" else torch.cuda.synchronize
  if dy is None:
    gradient = lambda: torch.autograd.grad(forward().square().sum(), (x, kernel))
  else:
    y, dy = forward(), tensor(np.moveaxis(dy, -1, 1))
    gradient = lambda: torch.autograd.grad(y, (x, kernel), dy, retain_graph=True)
  return lambda: (gradient(), wait())


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="tiny", choices=sorted(_CASES))
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--threads", type=int, default=1, help="cores of each side, on a CPU")
  args = parser.parse_args()
  on_cpu = not os.path.exists("/dev/nvidiactl")
  if on_cpu:
    harness.pin(args.threads)
  clock = time.process_time if on_cpu and args.threads == 1 else time.perf_counter
  torch.set_num_threads(args.threads)
  torch.backends.cudnn.benchmark = True
  rng = np.random.default_rng(0)
  rows = []
  for pixels, channels, features, side in _CASES[args.size]:
    x = rng.standard_normal((args.batch_size, pixels, pixels, channels), np.float32)
    kernel = rng.standard_normal((side, side, channels if features else 1, features or channels),
                                 np.float32)
    dy, label = None, f"{side}×{side}, {pixels}×{pixels}×{channels}"
    if features:
      dy = rng.standard_normal((*x.shape[:3], features), np.float32)
      label += f" -> {features}, gradients"
      runs = {f"{name}{', in a condition' if nested else ''}": _dense(f, x, kernel, dy, nested, args.dtype)
              for name, f in _DENSE.items() for nested in (False, True)}
    else:
      runs = {name: _depthwise(f, x, kernel, args.dtype) for name, f in _DEPTHWISE.items()}
    if on_cpu or torch.cuda.is_available():
      runs["PyTorch"] = _torch(x, kernel, dy, args.dtype, "cpu" if on_cpu else "cuda")
    for name, seconds in harness.interleave(runs, repeats=args.repeats, clock=clock).items():
      rows.append(harness.row(f"{label}, {name}", [1e3 * s for s in seconds], "ms"))
    harness.write(f"benchmarks/results/convolutions_{harness.label()}.json", "convolutions",
                  vars(args) | harness.allocator() | {"clock": clock.__name__}, rows)


if __name__ == "__main__":
  main()
