"""Estimates each kind of block of DC-AE's decoder at 1b with the TPU's compiler, with gradients.

  python -m benchmarks.decoder_parts --topology=v5e:2x2 --batch_sizes=2,8 [--options=NAME=VALUE,...]

Nothing runs: blocks are compiled for one chip, images of 448 px (512 after the decoder), bfloat16. A row
holds the estimated cycles at the chip's clock and the time of its matrix multiplications alone at peak; the
difference is the cost of memory, layouts and pointwise work. Writes
benchmarks/results/decoder_parts_<topology>.json, with options of the compiler ..._options.json.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness, programs
from unilip_jax.models import dcae_blocks as blocks
from unilip_jax.models import presets
from unilip_jax.ops import backend
from unilip_jax.plan import topology
from unilip_jax.training import flops
from unilip_jax.training import step as step_lib

_LATENTS = 16  # per side, of 448 px


def _parts() -> Iterator[tuple[str, Any, tuple[int, int, int]]]:
  """Yields (name, block, shape of an image's map) of every stage, from the latents on."""
  d = presets.get("1b").tokenizer.decoder
  for up, i in enumerate(reversed(range(len(d.channels)))):
    side, width = _LATENTS * 2**up, d.channels[i]
    label, shape = f"{side} px, {width} channels", (side, side, width)
    if d.blocks[i] == "ResBlock":
      yield f"ResBlock, {label}", blocks.ResBlock(d.norms[i], d.acts[i], jnp.bfloat16), shape
    else:
      attention = blocks.MultiscaleAttention(d.head_dim, d.qkv_multiscales[i], d.norms[i], jnp.bfloat16)
      yield f"attention, {label}", attention, shape
      yield f"GLU-MBConv, {label}", blocks.GluMbConv(jnp.bfloat16), shape


def _row(name: str, block: Any, shape: tuple, found: Any, options: dict[str, Any]) -> dict[str, Any]:
  place = topology.one_chip(found)
  spec = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  params = jax.eval_shape(block.init, jax.random.key(0), x)["params"]

  def run(params, x):
    y, gradients = jax.vjp(lambda params, x: block.apply({"params": params}, x), params, x)
    return y, gradients(jnp.ones_like(y))

  return programs.estimated(name, run, [jax.tree.map(spec, params), spec(x)], found, options) | {
      "products_at_peak_ms": 1e3 * flops.count(run, params, x) / found.chip.peak}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="v5e:2x2")
  parser.add_argument("--batch_sizes", default="2,8")
  parser.add_argument("--options", default="", help="of the compiler, as config.compiler_options")
  args = parser.parse_args()
  found, options = topology.parse(args.topology), step_lib.compiler_options(args.options)
  name = args.topology.replace(":", "_") + ("_options" if options else "")
  rows = []
  with backend.planning("tpu", found.chip.device_kind):
    for batch in map(int, args.batch_sizes.split(",")):
      for label, block, shape in _parts():
        rows.append(_row(f"batch {batch}, {label}", block, (batch, *shape), found, options))
        print(rows[-1], flush=True)
  harness.write(f"benchmarks/results/decoder_parts_{name}.json", "decoder_parts", vars(args), rows)


if __name__ == "__main__":
  main()
