"""Estimates how long a benchmark's images take on TPUs, from the program compiled for one chip.

  python -m benchmarks.sample_plan [--size=1b] [--topology=v5e:2x4] [--images=2212] [--batch_sizes=8]

GenEval's 553 prompts × 4 images are the default. Each chip samples its own images (20 steps with
guidance, 448 pixels), so that one chip's program is all there is; needs requirements-plan.txt and no TPU.
The time is a roofline, a lower bound: a fusion takes the longer of its products at peak and its HBM
traffic. Compiling, reading weights and writing files come on top. The compiler needs about
seven minutes of one core. Writes
benchmarks/results/sample_plan_<size>_<topology>.json.
"""

import argparse
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness
from unilip_jax.models import presets, unilip
from unilip_jax.ops import backend
from unilip_jax.plan import hlo, timing, topology
from unilip_jax.sampling import images

_IMAGE_SIZE = 448
_LENGTH = 64  # tokens of a prompt, padded: those of GenEval are shorter
_GUIDANCE = 4.5


def _compiled(size: str, batch: int, steps: int, found: topology.Topology) -> dict[str, Any]:
  """Memory, FLOPs and seconds of sampling `batch` images on one chip."""
  here = topology.one_chip(found)
  begin = time.monotonic()
  with backend.planning("tpu", found.chip.device_kind):
    dims = presets.get(size).unilip
    network = unilip.Unilip(dims, jnp.bfloat16)
    place = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)
    params = place(jax.eval_shape(lambda key: jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), network.init(key)), jax.random.key(0)))
    side = dims.tokenizer.tokens_per_side(_IMAGE_SIZE)
    prompts = lambda rows: {
        "tokens": jax.ShapeDtypeStruct((rows, _LENGTH), jnp.int32, sharding=here),
        "token_mask": jax.ShapeDtypeStruct((rows, _LENGTH), jnp.bool_, sharding=here)}
    noise = jax.ShapeDtypeStruct((batch, side, side, dims.dit.channels), jnp.float32, sharding=here)

    def sample(params, positive, negative, noise):
      return images.sample(
          network, params, positive, negative, None, noise, image_slot=0, factor=dims.factor,
          size=(_IMAGE_SIZE,) * 2, steps=steps, guidance=images.Guidance(_GUIDANCE), solver="dpm")

    compiled = jax.jit(sample).lower(params, prompts(batch), prompts(1), noise).compile()
  memory = compiled.memory_analysis()
  work = timing.work(hlo.Program(compiled.as_text()), found.chip)
  return {"seconds": work.roofline, "flops": work.flops, "hbm_bytes": work.hbm_bytes,
          "peak_share": work.flops / work.roofline / found.chip.peak,
          "arguments_bytes": int(memory.argument_size_in_bytes),
          "temporaries_bytes": int(memory.temp_size_in_bytes),
          "compile_seconds": time.monotonic() - begin}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="1b", choices=presets.SIZES)
  parser.add_argument("--topology", default="v5e:2x4")
  parser.add_argument("--images", type=int, default=553 * 4)
  parser.add_argument("--batch_sizes", default="8", help="of one chip, comma-separated")
  parser.add_argument("--steps", type=int, default=20)
  args = parser.parse_args()
  found, rows = topology.parse(args.topology), []
  for batch in map(int, args.batch_sizes.split(",")):
    done = _compiled(args.size, batch, args.steps, found)
    calls = math.ceil(args.images / found.size / batch)
    rows.append(harness.row(f"{args.images} images, {batch} a chip", [calls * done["seconds"] / 60],
                            "minutes, lower bound") | done | {"calls": calls})
  harness.write(f"benchmarks/results/sample_plan_{args.size}_{args.topology.replace(':', '_')}.json",
                "sample_plan", vars(args), rows)


if __name__ == "__main__":
  main()
