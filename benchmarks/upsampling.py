"""Estimates or times the formulations of ops/resample.py that double an image's sides, with gradients.

  python -m benchmarks.upsampling --topology=v5e:2x2     # compiled for one TPU chip; no TPU is used
  python -m benchmarks.upsampling                        # timed on this machine's accelerator

The result decides which formulation ops/resample.py uses on each backend. Shapes are those of DC-AE's
decoder at 448 px.
Compiled, a row is the compiler's own estimate of cycles at the chip's clock, with the memory traffic and
temporaries of the program. Writes benchmarks/results/upsampling_<device or topology>.json.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness, programs
from unilip_jax.ops import backend, resample
from unilip_jax.plan import topology

# Pixels per side before doubling, channels, features after it.
_CASES = ((28, 1024, 512), (56, 512, 512), (112, 512, 256), (224, 256, 128))
_CONVOLUTIONS = {"doubled": resample.conv_nearest_doubled, "transposed": resample.conv_nearest_transposed}
_SHORTCUTS = {"moves": resample.shuffle_by_transpose, "products": resample.shuffle_by_convolution}


def _functions():
  """Returns {name: (image, kernel) -> image}: each convolution and shortcut alone, then in pairs."""
  found = dict(_CONVOLUTIONS)
  for name, function in _SHORTCUTS.items():
    found[f"shortcut by {name}"] = lambda x, k, f=function: f(x, k.shape[-1])
  for (name, convolution), (other, shortcut) in zip(_CONVOLUTIONS.items(), _SHORTCUTS.items()):
    found[f"{name}, shortcut by {other}"] = (
        lambda x, k, f=convolution, g=shortcut: f(x, k) + g(x, k.shape[-1]))
  return found


def _label(case: tuple[int, int, int], name: str) -> str:
  return f"{case[0]} px, {case[1]} -> {case[2]}, {name}"


def _with_gradients(function):
  def run(x, kernel, dy):
    y, gradients = jax.vjp(function, x, kernel)
    return y, gradients(dy)

  return run


def _specs(batch: int, pixels: int, channels: int, features: int, sharding: Any = None):
  """Returns image, kernel and the gradient of the output, bfloat16."""
  shapes = ((batch, pixels, pixels, channels), (3, 3, channels, features),
            (batch, 2 * pixels, 2 * pixels, features))
  return [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=sharding) for s in shapes]


def _compiled(batch: int, where: str) -> list[dict[str, Any]]:
  found = topology.parse(where)
  here = topology.one_chip(found)
  with backend.planning("tpu", found.chip.device_kind):
    return [programs.estimated(
        _label(case, name), _with_gradients(function), _specs(batch, *case, here), found)
            for case in _CASES for name, function in _functions().items()]


def _timed(batch: int, repeats: int) -> list[dict[str, Any]]:
  rows = []
  for case in _CASES:
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, _specs(batch, *case))]
    rows += programs.timed(
        ((_label(case, name), _with_gradients(function), arrays)
         for name, function in _functions().items()), repeats)
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="", help="compile only, e.g. v5e:2x2")
  parser.add_argument("--batch_size", type=int, default=4)
  parser.add_argument("--repeats", type=int, default=20)
  args = parser.parse_args()
  if args.topology:
    rows, label = _compiled(args.batch_size, args.topology), args.topology.replace(":", "_")
  else:
    rows, label = _timed(args.batch_size, args.repeats), harness.label()
  harness.write(f"benchmarks/results/upsampling_{label}.json", "upsampling", vars(args), rows)


if __name__ == "__main__":
  main()
