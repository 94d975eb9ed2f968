"""Measures images to latents, and to latents and back, in JAX and PyTorch.

  python -m benchmarks.tokenizer [--size=tiny] [--batch_sizes=1,16] [--dtype=float32] [--compile]
  python -m benchmarks.tokenizer --size=1b --dtype=bfloat16 --compile       # one 80 GB GPU

JAX runs UniLIP.encode and UniLIP.reconstruct on a list of uint8 arrays. PyTorch runs transformers' InternVL
tower and diffusers' AutoencoderDC decoder on one uint8 tensor. Both start and end on the host.
Writes benchmarks/results/tokenizer_<size>_<dtype>_<device>.json.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import harness, pair, torch_tokenizer


def _torch_run(both: pair.Pair, pixels: np.ndarray, what: str, wrap):
  network = both.torch_model.tokenizer
  dtype = next(network.parameters()).dtype

  def encode(pixels):
    return network.latents(network.vision(torch_tokenizer.imagenet(pixels).to(dtype)))

  def reconstruct(pixels):
    signed = network.decoder(encode(pixels)).float()
    unit = (F.interpolate(signed, size=pixels.shape[1:3], mode="bilinear") + 1) / 2
    return (255 * unit.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1)

  function = wrap({"encode": encode, "reconstruct": reconstruct}[what])

  @torch.inference_mode()
  def run():
    out = function(torch.from_numpy(pixels).to(both.device))
    return (out.float() if what == "encode" else out).cpu().numpy()

  return run


def main() -> None:
  parser = pair.arguments(__doc__, "1,16")
  args = parser.parse_args()
  both = pair.make(args)
  size, rows = both.image_size, []
  for what in ("encode", "reconstruct"):
    for batch_size in map(int, args.batch_sizes.split(",")):
      pixels = np.random.default_rng(0).integers(
          0, 256, (batch_size, size, size, 3)).astype(np.uint8)

      def make_jax(what=what, batch_size=batch_size, pixels=pixels):
        run = getattr(both.jax_model(batch_size), what)
        return lambda: run(list(pixels))

      makers = {"unilip_jax": make_jax} | {
          name: functools.partial(_torch_run, both, pixels, what, wrap) for name, wrap in pair.sides(args)}
      seconds, errors = harness.measure(makers, repeats=args.repeats, clock=both.clock)
      rows += harness.compared(f"{what}, batch {batch_size}", seconds, errors, work=batch_size,
                               unit="images/s")
  harness.write(
      f"benchmarks/results/tokenizer_{args.size}_{args.dtype}_{harness.label()}{args.suffix}.json",
      "tokenizer", vars(args) | {"clock": both.clock.__name__, "image_size": size}, rows)


if __name__ == "__main__":
  main()
