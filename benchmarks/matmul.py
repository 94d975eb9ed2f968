"""Measures matrix multiplications of a dense layer with gradients on this CPU, float32 and bfloat16.

  python -m benchmarks.matmul [--repeats=10] [--threads=1]

PyTorch is timed too. The result is the reason for ops/cpu.py's `matmul`. Shapes: of the tiny DiT's gated
convolution, of the tiny LLM, and a large square. Writes benchmarks/results/matmul_cpu.json.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness
from unilip_jax.ops import cpu

_CASES = ((4096, 128, 640), (4096, 320, 128), (4608, 128, 768), (2048, 2048, 2048))  # rows, width, features


def _jax_runs(function, dtype, x, weight, dy):
  """Returns (runs the forward multiplication, runs those of the backward pass)."""
  forward = jax.jit(function)
  gradients = jax.jit(lambda x, w, dy: jax.vjp(function, x, w)[1](dy))
  arrays = [jnp.asarray(a, dtype) for a in (x, weight, dy)]
  return (lambda: jax.block_until_ready(forward(*arrays[:2])),
          lambda: jax.block_until_ready(gradients(*arrays)))


def _torch_runs(dtype, x, weight, dy):
  x, weight, dy = (torch.from_numpy(a).to(dtype) for a in (x, weight, dy))
  return lambda: x @ weight, lambda: (dy @ weight.T, x.T @ dy)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--threads", type=int, default=1, help="cores of each side")
  args = parser.parse_args()
  harness.pin(args.threads)
  torch.set_num_threads(args.threads)
  rng = np.random.default_rng(0)
  rows = []
  for count, width, features in _CASES:
    arrays = [rng.standard_normal(s, np.float32)
              for s in ((count, width), (width, features), (count, features))]
    sides = {
        "float32": _jax_runs(jnp.dot, jnp.float32, *arrays),
        "float32, rounded to bfloat16": _jax_runs(cpu.matmul, jnp.float32, *arrays),
        "bfloat16, XLA's": _jax_runs(jnp.dot, jnp.bfloat16, *arrays),
        "bfloat16": _jax_runs(cpu.matmul, jnp.bfloat16, *arrays),
        "PyTorch, float32": _torch_runs(torch.float32, *arrays),
        "PyTorch, bfloat16": _torch_runs(torch.bfloat16, *arrays)}
    for i, part in enumerate(("forward", "gradients")):
      runs = {name: both[i] for name, both in sides.items()}
      for name, seconds in harness.interleave(runs, repeats=args.repeats).items():
        rows.append(harness.row(f"[{count}, {width}] · [{width}, {features}], {part}, {name}",
                                [1e3 * s for s in seconds], "ms"))
  harness.write("benchmarks/results/matmul_cpu.json", "matmul",
                vars(args) | harness.allocator() | {"amx": cpu.has_amx()}, rows)


if __name__ == "__main__":
  main()
