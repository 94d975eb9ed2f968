"""Text → image in 20 steps, guidance in one batch, here and in PyTorch.

  python -m benchmarks.sample [--size=tiny] [--batch_sizes=1,16] [--dtype=float32] [--compile]
  python -m benchmarks.sample --size=1b --dtype=bfloat16 --compile          # one 80 GB GPU

Ours is UniLIP.generate, from strings to uint8 arrays on the host. PyTorch's is transformers' Qwen2 and
connector, diffusers' SanaTransformer2DModel, DPMSolverMultistepScheduler and AutoencoderDC's decoder, from
token ids to uint8 arrays on the host. Writes benchmarks/results/sample_<size>_<dtype>_<device>.json.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness, pair, torch_networks
from unilip_jax.sampling import images
from unilip_jax.training import flops

_PROMPT = "a large red circle to the left of a small blue square on a green background"


def _tokens(ours, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """(int32[2B, L], bool[2B, L]) of negative prompts and prompts, as UniLIP.generate pads them."""
  text = ours._text
  length = ours._length(text.generation, [_PROMPT])
  rows = [text.generation(p, length) for p in (None, _PROMPT) for _ in range(batch_size)]
  return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


def _model_flops(ours, tokens, mask, args) -> float:
  """Of one call: matrix products and convolutions of prompts, steps and decoder."""
  batch = len(tokens) // 2
  half = lambda x, i: np.split(x, 2)[i]
  side = ours.tokenizer_dims.tokens_per_side(ours.image_size)
  run = functools.partial(
      images.sample, ours._model, pixels=None, image_slot=ours._text.image_slot,
      factor=ours.dims.factor, image_size=ours.image_size, steps=args.steps, guidance=args.guidance)
  prompts = [{"tokens": half(tokens, i), "token_mask": half(mask, i)} for i in (1, 0)]
  return flops.count(
      lambda params, start: run(params=params, positive=prompts[0], negative=prompts[1], start=start),
      ours._params, jax.ShapeDtypeStruct((batch, side, side, ours.dims.dit.channels), jnp.float32))


def main() -> None:
  parser = pair.arguments(__doc__, "1,16")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--guidance", type=float, default=4.5)
  args = parser.parse_args()
  both = pair.make(args)
  rows = []
  peak, how = flops.peak(jax.devices()[:1])
  for batch_size in map(int, args.batch_sizes.split(",")):
    tokens, mask = _tokens(both.ours, batch_size)
    side = both.ours.tokenizer_dims.tokens_per_side(both.ours.image_size)
    start = np.random.default_rng(0).standard_normal(
        (batch_size, side, side, both.ours.dims.dit.channels)).astype(np.float32)
    tensors = [torch.from_numpy(x).to(both.device) for x in (tokens.astype(np.int64), mask)]
    noise = torch.from_numpy(start).permute(0, 3, 1, 2).contiguous().to(both.device)

    def ours(start=start, batch_size=batch_size):
      both.ours._batch = batch_size
      return lambda: both.ours.generate(
          [_PROMPT] * batch_size, latents=start, steps=args.steps, guidance=args.guidance)

    def theirs(wrap, tensors=tensors, noise=noise):
      sampler = torch_networks.Sampler(
          both.twin, image_size=both.ours.image_size, steps=args.steps, guidance=args.guidance)
      for name in ("context", "velocity", "decoder"):
        setattr(sampler, name, wrap(getattr(sampler, name)))
      return lambda: sampler(*tensors, noise).cpu().numpy()

    makers = {"unilip_jax": ours} | {
        name: functools.partial(theirs, wrap) for name, wrap in pair.sides(args)}
    seconds, errors = harness.measure(makers, repeats=args.repeats, clock=both.clock)
    work = _model_flops(both.ours, tokens, mask, args)
    extra = {"model_flops": work}
    if "unilip_jax" in seconds:
      extra["seconds_median"] = float(np.median(seconds["unilip_jax"]))
      if both.device.type != "cpu" and peak:  # a CPU's peak is measured by another clock than this
        extra["mfu"] = work / extra["seconds_median"] / peak
    rows += harness.compared(f"sample, batch {batch_size}", seconds, errors, work=batch_size,
                             unit="images/s", extra=extra)
  harness.write(
      f"benchmarks/results/sample_{args.size}_{args.dtype}_{harness.label()}{args.suffix}.json",
      "sample", vars(args) | {"clock": both.clock.__name__, "image_size": both.ours.image_size,
                              "peak": how}, rows)


if __name__ == "__main__":
  main()
