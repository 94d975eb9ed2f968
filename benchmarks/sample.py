"""Measures text → image in 20 steps, guidance in one batch, in JAX and PyTorch.

  python -m benchmarks.sample [--size=tiny] [--batch_sizes=1,16] [--dtype=float32] [--compile]
  python -m benchmarks.sample --size=1b --dtype=bfloat16 --compile          # one 80 GB GPU
  python -m benchmarks.sample --steps=4 --guidance=1 --suffix=_4_steps      # the work of a few-step network

JAX runs the Sampler of UniLIP.generate, from strings to uint8 arrays on the host. PyTorch runs Qwen2 and
connector of transformers, and the SANA transformer, DPM solver and DC-AE decoder of diffusers, from token
ids to uint8 arrays on the host. Writes
benchmarks/results/sample_<size>_<dtype>_<device>.json.
"""

import functools

import jax
import numpy as np
import torch

from benchmarks import harness, pair, torch_networks
from unilip_jax.data import text as text_lib
from unilip_jax.sampling import images, sampler
from unilip_jax.training import flops

_PROMPT = "a large red circle to the left of a small blue square on a green background"
_BUCKET = 32  # UniLIP.generate pads prompts to multiples of this many tokens


def _length(text: text_lib.Text) -> int:
  """Returns the number of tokens to which both sides pad the prompts."""
  longest = max(int(text.generation(prompt, 1024)[1].sum()) for prompt in (None, _PROMPT))
  return -(-longest // _BUCKET) * _BUCKET


def _tokens(
    text: text_lib.Text, length: int, batch_size: int, guidance: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns (int32[2B, L], bool[2B, L]): negative prompts unless guidance is 1, then prompts."""
  prompts = (_PROMPT,) if guidance == 1 else (None, _PROMPT)
  rows = [text.generation(p, length) for p in prompts for _ in range(batch_size)]
  return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


def _model_flops(both: pair.Pair, text: text_lib.Text, tokens, mask, start, args) -> float:
  """Counts FLOPs of one call: matrix multiplications and convolutions of prompts, steps and decoder."""
  count = start.shape[0]
  prompts = [{"tokens": tokens[i:i + count], "token_mask": mask[i:i + count]}
             for i in range(0, len(tokens), count)]
  run = functools.partial(
      images.sample, both.network(), pixels=None, positive=prompts[-1],
      negative=prompts[0] if len(prompts) > 1 else None, image_slot=text.image_slot,
      factor=both.dims.factor, size=(both.image_size,) * 2, steps=args.steps,
      guidance=images.Guidance(args.guidance))
  return flops.count(lambda params, start: run(params=params, start=start), both.params, start)


def main() -> None:
  parser = pair.arguments(__doc__, "1,16")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--guidance", type=float, default=4.5, help="1: none, half of the work")
  args = parser.parse_args()
  both, rows = pair.make(args), []
  text = text_lib.Text("shapes")
  length = _length(text)
  options = sampler.Options(steps=args.steps, guidance=args.guidance)
  peak, how = flops.peak(jax.devices()[:1])
  for batch_size in map(int, args.batch_sizes.split(",")):
    tokens, mask = _tokens(text, length, batch_size, args.guidance)
    jax_sampler = sampler.Sampler(
        both.network(), text, image_size=both.image_size, latent_scale=both.dims.factor,
        batch_size=batch_size, lengths={"t2i": length})
    start = np.random.default_rng(0).standard_normal(
        (batch_size, *jax_sampler.latent_shape)).astype(np.float32)
    tensors = [torch.from_numpy(x).to(both.device) for x in (tokens.astype(np.int64), mask)]
    noise = torch.from_numpy(start).permute(0, 3, 1, 2).contiguous().to(both.device)

    def make_jax(jax_sampler=jax_sampler, start=start, batch_size=batch_size):
      return lambda: jax_sampler.generate(both.params, [_PROMPT] * batch_size, options, latents=start)

    def make_torch(wrap, tensors=tensors, noise=noise):
      torch_sampler = torch_networks.Sampler(
          both.torch_model, image_size=both.image_size, steps=args.steps, guidance=args.guidance)
      for name in ("context", "velocity", "decoder"):
        setattr(torch_sampler, name, wrap(getattr(torch_sampler, name)))
      return lambda: torch_sampler(*tensors, noise).cpu().numpy()

    makers = {"unilip_jax": make_jax} | {
        name: functools.partial(make_torch, wrap) for name, wrap in pair.sides(args)}
    seconds, errors = harness.measure(makers, repeats=args.repeats, clock=both.clock)
    work = _model_flops(both, text, tokens, mask, start, args)
    extra = {"model_flops": work}
    if "unilip_jax" in seconds:
      extra["seconds_median"] = float(np.median(seconds["unilip_jax"]))
      if both.device.type != "cpu" and peak:  # another clock measures a CPU's peak
        extra["mfu"] = work / extra["seconds_median"] / peak
    rows += harness.compared(f"sample, batch {batch_size}", seconds, errors, work=batch_size,
                             unit="images/s", extra=extra)
    harness.write(
        f"benchmarks/results/sample_{args.size}_{args.dtype}_{harness.label()}{args.suffix}.json",
        "sample", vars(args) | {"clock": both.clock.__name__, "image_size": both.image_size,
                                "peak": how}, rows)


if __name__ == "__main__":
  main()
