"""Probes a tokenizer's features and latents: a small network learns to read every object of a scene.

  python -m benchmarks.probe [--weights=shapes:stage2] [--scenes=20000]

One probe reads mlp1's features, which the LLM gets; another reads the latents made of them. The latent head
loses what only the first can read. An attribute that is read badly is also hard for a decoder or a
generator. The result is no bound: a decoder learns from many more scenes, and a probe errs less, too,
with 60000 scenes. Compare weights under the same settings. Writes docs/results/probe.json: for both,
the share of objects whose attribute is read correctly, and the confusion matrix of shapes.
"""

import argparse
from collections.abc import Callable
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from unilip_jax.models import tokenizer
from unilip_jax.ops import image as image_ops
from unilip_jax.shapes import captions, render, scene
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources

_SEED = 0
_CELLS = scene.GRID**2
_ATTRIBUTES = {"shape": scene.SHAPES, "colour": scene.COLOURS, "size": scene.SIZES}
_WIDTH = 768  # of the hidden layer
_BATCH = 512
_CHUNK = 48  # scenes encoded at once
_EMPTY = 0  # class of a cell without an object; values of an attribute are counted from 1


def labels(one: scene.Scene) -> np.ndarray:
  """Returns int32[attributes, cells]: the class of every cell."""
  out = np.full((len(_ATTRIBUTES), _CELLS), _EMPTY, np.int32)
  for block in one.blocks:
    for row, (name, values) in enumerate(_ATTRIBUTES.items()):
      out[row, block.row * scene.GRID + block.column] = 1 + values.index(getattr(block, name))
  return out


def encoder(weights_name: str) -> Callable[[np.ndarray], dict[str, jax.Array]]:
  """Makes fn(uint8[B, H, W, 3]) -> {"features", "latents"}: float32[B, values of a scene]."""
  stored = sources.open_weights(weights_name)
  network = tokenizer.Tokenizer(dims_lib.tokenizer_dims(stored.model), jnp.float32)
  params = stored.load(tokenizer.MODULES)

  @jax.jit
  def encode(pixels):
    image = image_ops.unit_from_pixels(pixels)
    latents, features = network.apply({"params": params}, image, method="encode")
    return {"features": features.reshape(len(pixels), -1), "latents": latents.reshape(len(pixels), -1)}

  return encode


def examples(encode, split: str, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Encodes `count` scenes; returns (results of `encode`, labels int32[count, attributes, cells])."""
  parts, classes = [], []
  for first in range(0, count, _CHUNK):
    scenes = [captions.sample_scene(_SEED, i, split) for i in range(first, first + _CHUNK)]
    parts.append(jax.device_get(encode(np.stack([render.render(s) for s in scenes]))))
    classes += [labels(s) for s in scenes]
  return ({name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]},
          np.stack(classes)[:count])


def _init(width: int) -> dict[str, jax.Array]:
  keys = jax.random.split(jax.random.key(_SEED), 1 + len(_ATTRIBUTES))
  normal = lambda key, rows, columns: jax.random.normal(key, (rows, columns)) * rows**-0.5
  return {"hidden": normal(keys[0], width, _WIDTH), "bias": jnp.zeros((1, _WIDTH))} | {
      name: normal(key, _WIDTH, _CELLS * (1 + len(values)))
      for key, (name, values) in zip(keys[1:], _ATTRIBUTES.items())}


def _logits(params: dict[str, jax.Array], latents: jax.Array) -> list[jax.Array]:
  """Computes float32[B, cells, classes] of each attribute."""
  hidden = jax.nn.gelu(latents @ params["hidden"] + params["bias"])
  return [(hidden @ params[name]).reshape(len(latents), _CELLS, -1) for name in _ATTRIBUTES]


def train(latents: np.ndarray, classes: np.ndarray, updates: int) -> dict[str, jax.Array]:
  """Trains a probe; returns its weights."""
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
  """Computes shares of objects and complete scenes that are read correctly, and confusions of shapes."""
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
  parser.add_argument("--weights", default="shapes:stage2", help="a run, or shapes:NAME")
  parser.add_argument("--scenes", type=int, default=20_000, help="that the probe is trained on")
  parser.add_argument("--tests", type=int, default=960, help="scenes of each split to read")
  parser.add_argument("--updates", type=int, default=3000)
  parser.add_argument("--write", default="docs/results", help="folder for the JSON")
  args = parser.parse_args()
  encode = encoder(args.weights)
  sets = {split: examples(encode, split, args.scenes if split == "train" else args.tests)
          for split in ("train", "test", "unseen")}
  results = {}
  for layer in sets["train"][0]:
    taught, classes = sets["train"]
    mean, deviation = taught[layer].mean(0), taught[layer].std(0) + 1e-6
    params = train((taught[layer] - mean) / deviation, classes, args.updates)
    results[layer] = {
        split: scores(params, (sets[split][0][layer] - mean) / deviation, sets[split][1])
        for split in ("test", "unseen")}
    print(json.dumps({layer: results[layer]}, indent=1), flush=True)
  harness.save(pathlib.Path(args.write) / "probe.json",
               harness.about("probe") | {"settings": vars(args), "scores": results})


if __name__ == "__main__":
  main()
