"""Measures convolutions with gradients on this machine: two formulations each, and PyTorch's.

  python -m benchmarks.convolutions [--repeats=10] [--threads=1]

The reason for ops/conv.py's choice per backend. Shapes are those of the tiny decoder and
discriminator: depthwise ones of DC-AE's GLU-MBConv (3×3) and multi-scale attention (5×5), dense ones of
ResBlocks, upsampling and the discriminator. Of the dense ones the gradients alone are timed, by themselves
and inside a lax.cond. Writes benchmarks/results/convolutions_<device>.json.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness
from unilip_jax.ops import conv, cpu

# Pixels per side, channels, features (0: depthwise), side of the kernel.
_CASES = ((8, 1024, 0, 3), (4, 1024, 0, 3), (8, 384, 0, 5), (4, 384, 0, 5),
          (32, 32, 32, 3), (32, 32, 64, 3), (64, 16, 12, 3), (112, 3, 16, 5), (112, 16, 16, 3))
_DEPTHWISE = {"shifted products": cpu.depthwise, "grouped convolution": conv.depthwise_grouped}
_DENSE = {"products": cpu.conv, "XLA's": conv.conv_xla}


def _depthwise(function, x, kernel):
  gradient = jax.jit(jax.grad(lambda x, k: jnp.square(function(x, k)).sum(), argnums=(0, 1)))
  x, kernel = jnp.asarray(x), jnp.asarray(kernel)
  return lambda: jax.block_until_ready(gradient(x, kernel))


def _dense(function, x, kernel, dy, nested):
  def gradient(x, kernel, dy):
    return jax.vjp(function, x, kernel)[1](dy)

  def under_a_condition(on, x, kernel, dy):
    return jax.lax.cond(on, gradient, lambda x, kernel, dy: (x, kernel), x, kernel, dy)

  arrays = [jnp.asarray(a) for a in ((True,) if nested else ()) + (x, kernel, dy)]
  run = jax.jit(under_a_condition if nested else gradient)
  return lambda: jax.block_until_ready(run(*arrays))


def _torch(x, kernel, dy):
  groups = kernel.shape[3] if dy is None else 1
  x = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_()
  kernel = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
  forward = lambda: torch.nn.functional.conv2d(
      x, kernel, padding=kernel.shape[-1] // 2, groups=groups)
  if dy is None:
    return lambda: torch.autograd.grad(forward().square().sum(), (x, kernel))
  y, dy = forward(), torch.from_numpy(np.moveaxis(dy, -1, 1).copy())
  return lambda: torch.autograd.grad(y, (x, kernel), dy, retain_graph=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--threads", type=int, default=1, help="cores of each side")
  args = parser.parse_args()
  harness.pin(args.threads)
  clock = time.process_time if args.threads == 1 else time.perf_counter
  torch.set_num_threads(args.threads)
  on_cpu = jax.default_backend() == "cpu"
  rng = np.random.default_rng(0)
  rows = []
  for pixels, channels, features, side in _CASES:
    x = rng.standard_normal((args.batch_size, pixels, pixels, channels), np.float32)
    kernel = rng.standard_normal((side, side, channels if features else 1, features or channels),
                                 np.float32)
    dy, label = None, f"{side}×{side}, {pixels}×{pixels}×{channels}"
    if features:
      dy = rng.standard_normal((*x.shape[:3], features), np.float32)
      label += f" -> {features}, gradients"
      runs = {f"{name}{', in a condition' if nested else ''}": _dense(f, x, kernel, dy, nested)
              for name, f in _DENSE.items() for nested in (False, True)}
    else:
      runs = {name: _depthwise(f, x, kernel) for name, f in _DEPTHWISE.items()}
    if on_cpu:
      runs["PyTorch"] = _torch(x, kernel, dy)
    for name, seconds in harness.interleave(runs, repeats=args.repeats, clock=clock).items():
      rows.append(harness.row(f"{label}, {name}", [1e3 * s for s in seconds], "ms"))
  device = jax.devices()[0]
  label = "cpu" if device.platform == "cpu" else device.device_kind.replace(" ", "_").lower()
  harness.write(f"benchmarks/results/convolutions_{label}.json", "convolutions",
                vars(args) | harness.allocator() | {"clock": clock.__name__}, rows)


if __name__ == "__main__":
  main()
