"""Matrix multiplications of a dense layer with gradients: float32, bfloat16, and PyTorch's, on this CPU.

  python -m benchmarks.matmul [--repeats=10] [--threads=1]

The reason for ops/cpu.py's `matmul`. Shapes: of the tiny DiT's gated convolution, of the tiny LLM, and a
large square. Writes benchmarks/results/matmul_cpu.json.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness
from unilip_jax.ops import cpu

_CASES = ((4096, 128, 640), (4096, 320, 128), (4608, 128, 768), (2048, 2048, 2048))  # rows, width, features


def _ours(function, dtype, x, weight, dy):
  """(runs the forward multiplication, runs those of the backward pass)."""
  forward = jax.jit(function)
  gradients = jax.jit(lambda x, w, dy: jax.vjp(function, x, w)[1](dy))
  arrays = [jnp.asarray(a, dtype) for a in (x, weight, dy)]
  return (lambda: jax.block_until_ready(forward(*arrays[:2])),
          lambda: jax.block_until_ready(gradients(*arrays)))


def _torch(dtype, x, weight, dy):
  x, weight, dy = (torch.from_numpy(a).to(dtype) for a in (x, weight, dy))
  return lambda: x @ weight, lambda: (dy @ weight.T, x.T @ dy)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--threads", type=int, default=1, help="cores that both may use")
  args = parser.parse_args()
  harness.pin(args.threads)
  torch.set_num_threads(args.threads)
  rng = np.random.default_rng(0)
  rows = []
  for count, width, features in _CASES:
    arrays = [rng.standard_normal(s, np.float32)
              for s in ((count, width), (width, features), (count, features))]
    sides = {
        "float32": _ours(jnp.dot, jnp.float32, *arrays),
        "float32, rounded to bfloat16": _ours(cpu.matmul, jnp.float32, *arrays),
        "bfloat16, XLA's": _ours(jnp.dot, jnp.bfloat16, *arrays),
        "bfloat16": _ours(cpu.matmul, jnp.bfloat16, *arrays),
        "PyTorch, float32": _torch(torch.float32, *arrays),
        "PyTorch, bfloat16": _torch(torch.bfloat16, *arrays)}
    for part, products in (("forward", 1), ("gradients", 2)):
      runs = {name: both[products - 1] for name, both in sides.items()}
      for name, seconds in harness.interleave(runs, repeats=args.repeats).items():
        rows.append(harness.row(f"[{count}, {width}] · [{width}, {features}], {part}, {name}",
                                [1e3 * s for s in seconds], "ms"))
  harness.write("benchmarks/results/matmul_cpu.json", "matmul",
                vars(args) | harness.allocator() | {"amx": cpu.has_amx()}, rows)


if __name__ == "__main__":
  main()
