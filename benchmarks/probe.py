"""What a tokenizer's latents tell of a scene: a small network learns to read every object from them.

  python -m benchmarks.probe [--weights=blocks:stage2] [--scenes=20000]

What it reads badly is in the latents faintly at best, and hard on whatever works on them: a decoder that
draws it, a generator that decides it. It is not a bound, for a decoder learns from many more scenes
(from 60000, too, this reader errs less). Compare weights under the same settings.
Writes docs/results/probe.json: of each attribute the share of objects read right, and for shapes how
often each was taken for each other.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from unilip_jax import UniLIP
from unilip_jax.blocks import captions, render, scene

_SEED = 0
_CELLS = scene.GRID**2
_ATTRIBUTES = {"shape": scene.SHAPES, "colour": scene.COLOURS, "size": scene.SIZES}
_WIDTH = 768  # of the hidden layer
_BATCH = 512
_EMPTY = 0  # class of a cell without an object; values of an attribute are counted from 1


def labels(one: scene.Scene) -> np.ndarray:
  """int32[attributes, cells]: the class of every cell."""
  out = np.full((len(_ATTRIBUTES), _CELLS), _EMPTY, np.int32)
  for block in one.blocks:
    for row, (name, values) in enumerate(_ATTRIBUTES.items()):
      out[row, block.row * scene.GRID + block.column] = 1 + values.index(getattr(block, name))
  return out


def examples(model: UniLIP, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
  """(float32[count, latents of a scene in a row], int32[count, attributes, cells])."""
  latents, classes = [], []
  for first in range(0, count, 960):
    scenes = [captions.sample_scene(_SEED, i, split) for i in range(first, min(first + 960, count))]
    latents += [z.ravel() for z in model.encode([render.render(s) for s in scenes])]
    classes += [labels(s) for s in scenes]
  return np.stack(latents), np.stack(classes)


def _init(width: int) -> dict[str, jax.Array]:
  keys = jax.random.split(jax.random.key(_SEED), 1 + len(_ATTRIBUTES))
  normal = lambda key, rows, columns: jax.random.normal(key, (rows, columns)) * rows**-0.5
  return {"hidden": normal(keys[0], width, _WIDTH), "bias": jnp.zeros((1, _WIDTH))} | {
      name: normal(key, _WIDTH, _CELLS * (1 + len(values)))
      for key, (name, values) in zip(keys[1:], _ATTRIBUTES.items())}


def _logits(params: dict[str, jax.Array], latents: jax.Array) -> list[jax.Array]:
  """float32[B, cells, classes] of each attribute."""
  hidden = jax.nn.gelu(latents @ params["hidden"] + params["bias"])
  return [(hidden @ params[name]).reshape(len(latents), _CELLS, -1) for name in _ATTRIBUTES]


def train(latents: np.ndarray, classes: np.ndarray, updates: int) -> dict[str, jax.Array]:
  """A reader's weights."""
  def loss(params, z, y):
    return sum(optax.softmax_cross_entropy_with_integer_labels(logits, y[:, row]).mean()
               for row, logits in enumerate(_logits(params, z)))

  optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, updates), weight_decay=1e-3)

  @jax.jit
  def update(params, state, z, y):
    change, state = optimizer.update(jax.grad(loss)(params, z, y), state, params)
    return optax.apply_updates(params, change), state

  params = _init(latents.shape[1])
  state, rng = optimizer.init(params), np.random.default_rng(_SEED)
  for _ in range(updates):
    rows = rng.integers(0, len(latents), _BATCH)
    params, state = update(params, state, latents[rows], classes[rows])
  return params


def scores(params: dict[str, jax.Array], latents: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
  """Shares of objects read right, of scenes of which all is, and how shapes were taken."""
  read = np.stack([np.asarray(x.argmax(-1)) for x in _logits(params, latents)], axis=1)
  right, there = read == classes, classes[:, 0] != _EMPTY
  share = lambda x: round(float(np.mean(x)), 4)
  shapes = ("nothing", *scene.SHAPES)
  return {
      "objects": int(there.sum()), "whole scenes": share(right.all((1, 2)))} | {
      name: share(right[:, row][there]) for row, name in enumerate(_ATTRIBUTES)} | {
      "shapes": {
          wanted: {got: share(read[:, 0][classes[:, 0] == 1 + i] == j) for j, got in enumerate(shapes)}
          for i, wanted in enumerate(scene.SHAPES)}}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--weights", default="blocks:stage2", help="a run, or blocks:NAME")
  parser.add_argument("--scenes", type=int, default=20_000, help="that the reader learns from")
  parser.add_argument("--tests", type=int, default=960, help="scenes of each split to be read")
  parser.add_argument("--updates", type=int, default=3000)
  parser.add_argument("--write", default="docs/results", help="folder for the JSON")
  args = parser.parse_args()
  model = UniLIP.load(args.weights, "float32", batch_size=48)
  latents, classes = examples(model, "train", args.scenes)
  mean, deviation = latents.mean(0), latents.std(0) + 1e-6
  params = train((latents - mean) / deviation, classes, args.updates)
  found = {}
  for split in ("test", "heldout"):
    latents, classes = examples(model, split, args.tests)
    found[split] = scores(params, (latents - mean) / deviation, classes)
  print(json.dumps(found, indent=1))
  folder = pathlib.Path(args.write)
  folder.mkdir(parents=True, exist_ok=True)
  about = harness.about("probe") | {"settings": vars(args), "scores": found}
  (folder / "probe.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
  main()
