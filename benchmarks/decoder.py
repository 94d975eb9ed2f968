"""Measures DC-AE's decoder with gradients at tiny size, in JAX and diffusers' in PyTorch eager.

  python -m benchmarks.decoder [--batch_size=32] [--repeats=15]

Same dimensions, random weights, float32, 4×4 latents to 128×128 pixels; gradients of parameters and
latents. CPU time of one core each by default: with more, threads of PyTorch wait for each other
at barriers, which slows it up to tenfold on a machine that runs anything else. The gradients touch
300 MB, which glibc returns to the system after every call (a quarter of the time of JAX); with
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 fetching it again is cheaper. Writes
benchmarks/results/decoder_cpu.json, or decoder_cpu_hugepages.json with that setting.
"""

import argparse
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness
from unilip_jax.models import dcae, presets


def _jax_runs(dims: presets.DcaeDims, latents: np.ndarray):
  decoder = dcae.Decoder(dims, jnp.float32, "none")
  latents = jnp.asarray(latents)
  params = jax.jit(decoder.init)(jax.random.key(0), latents)["params"]
  forward = jax.jit(lambda p, z: decoder.apply({"params": p}, z))
  gradient = jax.jit(jax.grad(
      lambda p, z: jnp.square(decoder.apply({"params": p}, z)).mean(), argnums=(0, 1)))
  return (lambda: jax.block_until_ready(forward(params, latents)),
          lambda: jax.block_until_ready(gradient(params, latents)))


def _torch_runs(dims: presets.DcaeDims, latents: np.ndarray):
  decoder = diffusers.AutoencoderDC(
      latent_channels=dims.latent_channels, attention_head_dim=dims.head_dim,
      encoder_block_out_channels=(32, 32), encoder_layers_per_block=(1, 1),
      decoder_block_types=dims.blocks, decoder_block_out_channels=dims.channels,
      decoder_layers_per_block=dims.layers, decoder_qkv_multiscales=dims.qkv_multiscales,
      upsample_block_type=dims.resample, decoder_norm_types=dims.norms,
      decoder_act_fns=dims.acts).decoder
  latents = torch.from_numpy(np.moveaxis(latents, -1, 1).copy()).requires_grad_()
  variables = (latents, *decoder.parameters())

  def forward():
    with torch.no_grad():
      decoder(latents)

  return forward, lambda: torch.autograd.grad(decoder(latents).square().mean(), variables)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=15)
  parser.add_argument("--threads", type=int, default=1, help="cores of each side")
  args = parser.parse_args()
  harness.pin(args.threads)
  clock = time.process_time if args.threads == 1 else time.perf_counter
  if jax.default_backend() != "cpu":
    raise SystemExit("compares on the CPU only: set JAX_PLATFORMS=cpu")
  torch.set_num_threads(args.threads)
  dims = presets.get("tiny").tokenizer.decoder
  latents = np.random.default_rng(0).standard_normal(
      (args.batch_size, 4, 4, dims.latent_channels), np.float32)
  jax_runs, torch_runs = _jax_runs(dims, latents), _torch_runs(dims, latents)
  rows = []
  for i, what in enumerate(("forward", "with gradients")):
    seconds = harness.interleave(
        {"unilip_jax": jax_runs[i], "diffusers": torch_runs[i]}, repeats=args.repeats, clock=clock)
    rows += [harness.row(f"{what}, {who}", [1e3 * s for s in values], "ms")
             for who, values in seconds.items()]
    rows.append(harness.row(
        f"{what}, ratio", np.array(seconds["diffusers"]) / np.array(seconds["unilip_jax"]), "×", True))
  suffix = "_hugepages" if "hugetlb=1" in harness.allocator()["glibc_tunables"] else ""
  harness.write(f"benchmarks/results/decoder_cpu{suffix}.json", "decoder",
                vars(args) | harness.allocator()
                | {"clock": clock.__name__, "size": "tiny", "latents": 4}, rows)


if __name__ == "__main__":
  main()
