"""Measures which attributes a generator decides at which noise level, with samples from partial noise.

  python -m benchmarks.noise_levels [--weights=shapes:gen2] [--count=96] [--guidance=2]

Latents of test scenes with two objects get noise up to a level, and the sampler continues from there with a
caption that names shapes and colours. The verifier reads shapes, colours and places of the results. An
attribute that is wrong even from a low level is refined badly. One that is wrong only from pure noise is
planned badly. The curve shows which times training should sample more often
(config.generate.timestep_shift). Writes docs/results/noise_levels.json and .png.
"""

import argparse
from collections.abc import Callable
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from benchmarks import harness
from unilip_jax.configs import gen2
from unilip_jax.data import text as text_lib
from unilip_jax.models import unilip
from unilip_jax.ops import flow_schedules
from unilip_jax.ops import image as image_ops
from unilip_jax.sampling import images
from unilip_jax.shapes import captions, render, scene, verify
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources

_SEED = 0
_PARTS = {
    "shapes": lambda s: sorted(b.shape for b in s.blocks),
    "colours": lambda s: sorted(b.colour for b in s.blocks),
    "places": lambda s: sorted((b.row, b.column) for b in s.blocks)}


def _examples(count: int) -> list[tuple[scene.Scene, captions.Caption]]:
  """Returns test scenes of two objects, each with its first caption that names shapes and colours."""
  pairs: list[tuple[scene.Scene, captions.Caption]] = []
  index = 0
  while len(pairs) < count:
    one = captions.sample_scene(_SEED, index, "test")
    index += 1
    fitting = [c for c in captions.captions_of(one) if c.category == "colour_attribution"]
    if fitting:
      pairs.append((one, fitting[0]))
  return pairs


def _sampler(
    network: unilip.Unilip, text: text_lib.Text, factor: float, image_size: int, guidance: float
) -> Callable[..., jax.Array]:
  """Makes fn(params, positive, negative, pixels, noise, fields of a Solver) -> images, all of one batch."""

  def run(params, positive, negative, pixels, noise, table):
    table = flow_schedules.Solver(**table)
    latents = factor * network.tokenizer.apply(
        {"params": params}, image_ops.unit_from_pixels(pixels), method="encode")[0]
    start = (1 - table.sigmas[0]) * latents + table.sigmas[0] * noise
    velocity = images.prompted(
        network, params, positive, negative, None, image_slot=text.image_slot,
        guidance=images.Guidance(guidance))
    samples, _ = images.solve(velocity, start, table)
    return image_ops.pixels_from_unit(network.decode(params, samples / factor, (image_size,) * 2))

  return jax.jit(run)


def _curve(steps: int, levels: int, weights_name: str, count: int, guidance: float) -> list[dict]:
  stored = sources.open_weights(weights_name)
  dims = dims_lib.unilip_dims(stored.model)
  network, text = unilip.Unilip(dims, jnp.float32), text_lib.Text("shapes")
  params = stored.load(unilip.MODULES)
  image_size = dims.tokenizer.vit.image_size
  run = _sampler(network, text, dims.factor, image_size, guidance)
  examples = _examples(count)
  length = gen2.get_config("tiny").text.t2i_length
  layout = lambda prompt: text.generation(prompt, length)
  negative = text_lib.stack_prompts([layout(None)])
  positive = text_lib.stack_prompts([layout(c.text) for _, c in examples])
  pixels = np.stack([render.render(s, image_size) for s, _ in examples])
  side = dims.tokenizer.tokens_per_side(image_size)
  noise = images.noise(_SEED, 0, (count, side, side, dims.dit.channels))
  table, curve = flow_schedules.solver("dpm", steps), []
  for step in np.linspace(0, steps - 1, levels).astype(int):
    rest = dataclasses.asdict(table.after(int(step)))
    results = run(params, positive, negative, pixels, noise, rest)
    scenes = [verify.verify(i) for i in np.asarray(results)]
    share = lambda right: round(float(np.mean(right)), 4)
    curve.append({"sigma": round(float(rest["sigmas"][0]), 3)} | {
        name: share([r is not None and part(r) == part(s) for r, (s, _) in zip(scenes, examples)])
        for name, part in _PARTS.items()} | {
        "caption": share([captions.fits(c, r) for r, (_, c) in zip(scenes, examples)])})
    print(curve[-1], flush=True)
  return curve


def _plot(curve: list[dict], title: str) -> matplotlib.figure.Figure:
  figure = matplotlib.figure.Figure(figsize=(6, 3.6), layout="constrained")
  axes = figure.subplots()
  sigmas = [row["sigma"] for row in curve]
  for name in (*_PARTS, "caption"):
    axes.plot(sigmas, [row[name] for row in curve], marker="o", markersize=3, label=name,
              color="black" if name == "caption" else None)
  axes.set(xlabel="noise level at which sampling starts, σ", ylabel="share correct", ylim=(0, 1.02),
           title=title)
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  return figure


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--weights", default="shapes:gen2", help="a run, or shapes:NAME")
  parser.add_argument("--count", type=int, default=96, help="scenes, which make one batch")
  parser.add_argument("--guidance", type=float, default=2.0)
  parser.add_argument("--steps", type=int, default=20, help="of the complete schedule")
  parser.add_argument("--levels", type=int, default=8)
  parser.add_argument("--write", default="docs/results", help="folder for JSON and PNG")
  args = parser.parse_args()
  curve = _curve(args.steps, args.levels, args.weights, args.count, args.guidance)
  path = pathlib.Path(args.write) / "noise_levels.json"
  harness.save(path, harness.about("noise_levels") | {"settings": vars(args), "curve": curve})
  _plot(curve, f"{args.weights}, two objects").savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
  main()
