"""Scores weights before and after reward training: by the reward's reader, by others, and by diversity.

  python -m benchmarks.reward_scores --weights=shapes:gen3,runs/rl_nft --curves=runs/rl_nft

Prompts and edits are held-out ones, the first of each split. Every image is read four times: as the reward
reads it, and after changes that training never sees, JPEG of quality 75, noise of 2 % and bicubic resizing
to 168 px. A reward that is cheated shows in scores that fall after these changes. `diversity` samples the
same prompts with many noises: the share of different scenes among those of a prompt, and the mean entropy
of a scene's background and of its objects' attributes, over clear images. Rows have a seed of the noise
each. `curves` has the mean rewards of a run's rollouts, ten updates at a time. Writes
docs/results/reward_scores.json, or --write.
"""

import argparse
import collections
from collections.abc import Callable, Iterator, Sequence
import io
import math
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import harness
from unilip_jax.infer.model import UniLIP
from unilip_jax.shapes import captions, edits, paraphrases, render, scene, tars, verify
from unilip_jax.training import metrics

_SEED = 0  # of prompts and edits
_ATTRIBUTES = ("row", "column", "colour", "size", "shape")

Readings = Sequence[scene.Scene | None]


def jpeg(pixels: np.ndarray) -> np.ndarray:
  """Returns uint8[H, W, 3] after JPEG of quality 75."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
  return np.asarray(Image.open(buffer))


def noise(pixels: np.ndarray) -> np.ndarray:
  """Returns uint8[H, W, 3] with Gaussian noise of 2 % of the range, the same at every call."""
  added = pixels + np.random.default_rng(0).normal(0.0, 0.02 * 255, pixels.shape)
  return np.clip(np.rint(added), 0, 255).astype(np.uint8)


def resized(pixels: np.ndarray) -> np.ndarray:
  """Returns uint8[168, 168, 3], bicubic."""
  return np.asarray(Image.fromarray(pixels).resize((168, 168), Image.Resampling.BICUBIC))


READERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "verifier": lambda pixels: pixels, "jpeg75": jpeg, "noise2percent": noise, "168px": resized}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--weights", required=True, help="runs, checkpoints or shapes:NAME, comma-separated")
  parser.add_argument("--steps", default="20", help="evaluations of the DiT, comma-separated")
  parser.add_argument("--guidance", default="1", help="comma-separated")
  parser.add_argument("--seeds", default="0", help="of the noise, comma-separated")
  parser.add_argument("--count", type=int, default=240, help="prompts and edits of each set")
  parser.add_argument("--prompts", type=int, default=12, help="of diversity; 0 leaves it out")
  parser.add_argument("--noises", type=int, default=24, help="of each of these prompts")
  parser.add_argument("--curves", default="", help="workdirs of runs, comma-separated")
  parser.add_argument("--write", default="docs/results/reward_scores.json")
  args = parser.parse_args()
  rows, curves = [], {run: curve(run) for run in args.curves.split(",") if run}
  for weights in args.weights.split(","):
    model = UniLIP.load(weights, "float32", batch_size=48)
    for steps in map(int, args.steps.split(",")):
      for guidance in map(float, args.guidance.split(",")):
        for seed in map(int, args.seeds.split(",")):
          options = {"steps": steps, "guidance": guidance, "seed": seed, "output": "array"}
          scores = measure(model, options, args.count)
          if args.prompts:
            scores |= diversity(model, options, args.prompts, args.noises)
          rows.append({"weights": weights, "steps": steps, "guidance": guidance, "seed": seed,
                       "scores": scores})
          print(rows[-1], flush=True)
          harness.save(pathlib.Path(args.write), harness.about("reward_scores") | {
              "settings": {k: v for k, v in vars(args).items() if k != "write"}, "rows": rows,
              "curves": curves})


def curve(workdir: str, each: int = 10) -> list[dict[str, float]]:
  """Returns rows {step, reward_t2i, reward_edit, zero_std_share}, means of `each` updates up to `step`."""
  rows = [row for row in metrics.read(workdir) if "train/reward" in row]
  parts = [rows[i:i + each] for i in range(0, len(rows), each)]
  return [{"step": part[-1]["step"]} | {
      name: round(float(np.mean([row[f"train/{name}"] for row in part])), 4)
      for name in ("reward_t2i", "reward_edit", "zero_std_share")} for part in parts]


def measure(model: UniLIP, options: dict[str, Any], count: int) -> dict[str, float]:
  """Returns {"<set>/<reader>": share right} of prompts and of edits with other objects unchanged."""
  scores = {}
  for name, images, right in _sets(model, options, count):
    for reader, change in READERS.items():
      readings = verify.verify_all([change(image) for image in images])
      marks = [mark for mark in map(right, range(len(readings)), readings) if mark is not None]
      scores[f"{name}/{reader}"] = round(float(np.mean(marks)), 4)
  return scores


def _sets(
    model: UniLIP, options: dict[str, Any], count: int
) -> Iterator[tuple[str, Sequence[np.ndarray], Callable[[int, scene.Scene | None], bool | None]]]:
  """Yields (name, images, fn(number, reading) -> right, None if it does not count)."""
  for name, split, paraphrased in (
      ("prompts", "test", False), ("paraphrases", "test", True), ("unseen_prompts", "unseen", False)):
    asked = captions.prompts_in_turn(count, _SEED, split)
    texts = [paraphrases.paraphrase(c.text, paraphrases.PROMPTS, i) if paraphrased else c.text
             for i, c in enumerate(asked)]
    yield name, model.generate(texts, **options), lambda i, seen, asked=asked: captions.fits(asked[i], seen)
  for name, split, paraphrased in (
      ("edits", "test", False), ("edit_paraphrases", "test", True), ("unseen_edits", "unseen", False)):
    wanted = [tars.sample_edit(_SEED, i, split, paraphrased=paraphrased) for i in range(count)]
    images = model.edit(
        [render.render(e.source) for e in wanted], [e.instruction for e in wanted], **options)

    def right(i, seen, wanted=wanted):
      success, preserved = edits.score(wanted[i], seen)
      return None if preserved is None else success and preserved

    yield name, images, right


def diversity(
    model: UniLIP, options: dict[str, Any], prompts: int, noises: int) -> dict[str, float]:
  """Returns the diversity of the scenes that one prompt gets, averaged over prompts (`summarize`)."""
  asked = captions.prompts_in_turn(prompts, _SEED, "test")
  images = model.generate([c.text for c in asked for _ in range(noises)], **options)
  readings = verify.verify_all(images)
  found = [summarize(readings[i * noises:(i + 1) * noises]) for i in range(prompts)]
  return {f"diversity/{key}": round(float(np.mean([f[key] for f in found if key in f])), 4)
          for key in ("clear", "distinct", "entropy")}


def summarize(readings: Readings) -> dict[str, float]:
  """Measures how much the scenes of one prompt differ.

  Args:
    readings: of its images; None is unclear.

  Returns:
    clear: the share of clear images; and of these, if there are any,
    distinct: different scenes divided by scenes.
    entropy: bits, summed over the background and each attribute of an object.
  """
  clear = [one for one in readings if one is not None]
  result = {"clear": len(clear) / len(readings)}
  if clear:
    values = [[one.background for one in clear]]
    values += [[getattr(b, a) for one in clear for b in one.blocks] for a in _ATTRIBUTES]
    result |= {"distinct": len(set(clear)) / len(clear), "entropy": sum(map(_entropy, values))}
  return result


def _entropy(values: Sequence[Any]) -> float:
  shares = [n / len(values) for n in collections.Counter(values).values()]
  return -math.fsum(p * math.log2(p) for p in shares)


if __name__ == "__main__":
  main()
