"""Depthwise convolution with gradients: two formulations, and PyTorch's, on this machine.

  python -m benchmarks.depthwise [--repeats=10] [--threads=1]

The question behind ops/conv.py's choice per backend. Shapes are of DC-AE's GLU-MBConv (3×3) and
multi-scale attention (5×5) at tiny size. Writes benchmarks/results/depthwise_<device>.json.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness
from unilip_jax.ops import conv

_CASES = ((8, 1024, 3), (4, 1024, 3), (8, 384, 5), (4, 384, 5))  # pixels per side, channels, kernel


def _jax(function, x, kernel):
  gradient = jax.jit(jax.grad(lambda x, k: jnp.square(function(x, k)).sum(), argnums=(0, 1)))
  x, kernel = jnp.asarray(x), jnp.asarray(kernel)
  return lambda: jax.block_until_ready(gradient(x, kernel))


def _torch(x, kernel):
  x = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_()
  kernel = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()

  def run():
    y = torch.nn.functional.conv2d(
        x, kernel, padding=kernel.shape[-1] // 2, groups=kernel.shape[0])
    torch.autograd.grad(y.square().sum(), (x, kernel))

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--threads", type=int, default=1, help="cores that both may use")
  args = parser.parse_args()
  harness.pin(args.threads)
  clock = time.process_time if args.threads == 1 else time.perf_counter
  torch.set_num_threads(args.threads)
  rng = np.random.default_rng(0)
  rows = []
  for pixels, channels, side in _CASES:
    x = rng.standard_normal((args.batch_size, pixels, pixels, channels), np.float32)
    kernel = rng.standard_normal((side, side, 1, channels), np.float32)
    runs = {"shifted products": _jax(conv.depthwise_shifts, x, kernel),
            "grouped convolution": _jax(conv.depthwise_grouped, x, kernel)}
    if jax.default_backend() == "cpu":
      runs["PyTorch"] = _torch(x, kernel)
    for name, seconds in harness.interleave(runs, repeats=args.repeats, clock=clock).items():
      rows.append(harness.row(f"{side}×{side}, {pixels}×{pixels}×{channels}, {name}",
                              [1e3 * s for s in seconds], "ms"))
  device = jax.devices()[0]
  label = "cpu" if device.platform == "cpu" else device.device_kind.replace(" ", "_").lower()
  harness.write(f"benchmarks/results/depthwise_{label}.json", "depthwise",
                vars(args) | harness.allocator() | {"clock": clock.__name__}, rows)


if __name__ == "__main__":
  main()
