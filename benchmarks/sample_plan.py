"""Estimates how long a benchmark's images take on TPUs, from the program compiled for one chip.

  python -m benchmarks.sample_plan [--size=1b] [--topology=v5e:2x4] [--images=2212] [--batch_sizes=8]
  python -m benchmarks.sample_plan --steps=4 --few_step=mean_flow --suffix=few_step
  python -m benchmarks.sample_plan --topology=v5e:16x16 --images=1152 --batch_sizes=5 --steps=10 \
      --guidance=1 --suffix=rollout [--edits]                   the images of one update of rl_nft

GenEval's 553 prompts × 4 images are the default. Each chip samples its own images (448 pixels), so that
one chip's program is all there is; needs requirements-plan.txt and no TPU. The time is a roofline, a lower
bound: a fusion takes the longer of its products at peak and its HBM traffic. Compiling, reading weights and
writing files come on top. The compiler needs about seven minutes of one core. Writes
benchmarks/results/sample_plan_<size>_<topology>[_<suffix>].json.
"""

import argparse
import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness
from unilip_jax.models import presets, time_embedding, unilip
from unilip_jax.ops import backend
from unilip_jax.plan import hlo, timing, topology
from unilip_jax.sampling import images

_IMAGE_SIZE = 448
_LENGTH = 64  # tokens of a prompt, padded: those of GenEval are shorter


def _compiled(
    size: str, batch: int, found: topology.Topology, *, steps: int, guidance: float, few_step: str,
    edits: bool) -> dict[str, Any]:
  """Memory, FLOPs and seconds of sampling `batch` images on one chip."""
  here = topology.one_chip(found)
  begin = time.monotonic()
  with backend.planning("tpu", found.chip.device_kind):
    dims = dataclasses.replace(presets.get(size).unilip, few_step=few_step)
    network = unilip.Unilip(dims, jnp.bfloat16)
    place = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

    def init(key):
      interval = time_embedding.init_interval(key, dims.dit.width) if few_step == "mean_flow" else {}
      weights = network.init(key) | {unilip.INTERVAL: interval}
      return jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)

    params = place(jax.eval_shape(init, jax.random.key(0)))
    side = dims.tokenizer.tokens_per_side(_IMAGE_SIZE)
    prompts = lambda rows: {
        "tokens": jax.ShapeDtypeStruct((rows, _LENGTH), jnp.int32, sharding=here),
        "token_mask": jax.ShapeDtypeStruct((rows, _LENGTH), jnp.bool_, sharding=here)}
    pixels = jax.ShapeDtypeStruct((batch, 1, *[_IMAGE_SIZE] * 2, 3), jnp.uint8, sharding=here)
    noise = jax.ShapeDtypeStruct((batch, side, side, dims.dit.channels), jnp.float32, sharding=here)

    def sample(params, positive, negative, pixels, noise):
      return images.sample(
          network, params, positive, negative, pixels, noise, image_slot=0, factor=dims.factor,
          size=(_IMAGE_SIZE,) * 2, steps=steps, guidance=images.Guidance(guidance), solver="dpm")

    negative = prompts(1) if guidance != 1 and not few_step else None
    compiled = jax.jit(sample).lower(
        params, prompts(batch), negative, pixels if edits else None, noise).compile()
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
  parser.add_argument("--guidance", type=float, default=4.5, help="1: none, half of the work")
  parser.add_argument("--few_step", default="", choices=["", "mean_flow", "consistency"],
                      help="method of a few-step network, whose guidance is inside")
  parser.add_argument("--edits", action="store_true", help="an input image for every image")
  parser.add_argument("--suffix", default="", help="of the result's file name")
  args = parser.parse_args()
  found, rows = topology.parse(args.topology), []
  for batch in map(int, args.batch_sizes.split(",")):
    done = _compiled(args.size, batch, found, steps=args.steps, guidance=args.guidance,
                     few_step=args.few_step, edits=args.edits)
    calls = math.ceil(args.images / found.size / batch)
    rows.append(harness.row(f"{args.images} images, {batch} a chip", [calls * done["seconds"] / 60],
                            "minutes, lower bound") | done | {"calls": calls})
  name = "_".join(filter(None, [args.size, args.topology.replace(":", "_"), args.suffix]))
  harness.write(f"benchmarks/results/sample_plan_{name}.json", "sample_plan", vars(args), rows)


if __name__ == "__main__":
  main()
