"""Configs and a preset for runs of seconds: the real code at dimensions too small to learn anything.

`python -m tests.micro STAGE IMAGES WORKDIR [field=value ...]` trains such a run as a process of its own,
for tests that kill it.
"""

import ast
import dataclasses
import importlib
import pathlib
import sys
import time
from typing import Any

from absl import logging
import numpy as np
from PIL import Image

from unilip_jax.common import tree
from unilip_jax.models import presets

IMAGE_SIZE = 56


def preset() -> presets.Preset:
  """The tiny preset at smaller dimensions, with every kind of layer."""
  tiny = presets.get("tiny")
  decoder = dataclasses.replace(
      tiny.tokenizer.decoder, channels=(8, 8, 8, 16, 16, 32), head_dim=8, layers=(0, 1, 0, 1, 0, 1))
  return dataclasses.replace(
      tiny,
      tokenizer=presets.TokenizerDims(
          vit=presets.VitDims(depth=2, width=32, heads=2, mlp=64, patch=14, image_size=IMAGE_SIZE),
          llm_width=24, latent_depth=2, decoder=decoder),
      llm=dataclasses.replace(tiny.llm, depth=3, width=24, heads=4, kv_heads=2, mlp=32),
      connector=presets.ConnectorDims(depth=2, queries=4),
      dit=presets.DitDims(depth=2, heads=2, head_dim=8, cross_heads=2, cross_head_dim=8,
                          caption_width=16, grid=2),
      discriminator=presets.DiscriminatorDims(stem=8, channels=(8, 8, 8), groups=4, pool=4))


def install(monkeypatch=None) -> None:
  """Makes `presets.get("tiny")` return the micro preset; without a patch, for the rest of the process."""
  micro, published = preset(), presets.get
  get = lambda size: micro if size == "tiny" else published(size)
  if monkeypatch is None:
    presets.get = get
  else:
    monkeypatch.setattr(presets, "get", get)


def skip_flops(monkeypatch=None) -> None:
  """Makes runs not count the FLOPs of a step, for which it is traced twice more; as of `install`."""
  from unilip_jax.training import step

  count = lambda config: lambda number: 0.0
  if monkeypatch is None:
    step.step_flops = count
  else:
    monkeypatch.setattr(step, "step_flops", count)


def train_step(task):
  """Returns the task's train step; at 3b for 2 × 16 devices, with weights gathered once a step."""
  if task.config.size != "3b":
    return task.train_step
  import jax

  from unilip_jax.sharding import activations, mesh

  task.config.mesh.gather = "step"
  devices = jax.sharding.AbstractMesh(
      (2, 16), mesh.DATA_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
  return activations.under(devices, task.train_step)


def one_device(monkeypatch) -> None:
  """Makes runs use the first device alone: a step then compiles in seven tenths of the time.

  That meshes agree is held by tests/sharding for a step, sampling/images_test.py for a sample, and
  train_test.py for a restored run.
  """
  import jax

  from unilip_jax.sharding import mesh

  monkeypatch.setattr(mesh, "config_mesh", lambda config: mesh.make_mesh(1, 1, jax.devices()[:1]))


def config(stage: str, images: pathlib.Path | str = "", **overrides):
  """Config of `stage` at tiny, shortened; overrides name fields with dots as `gan__start_step=3`."""
  c = importlib.import_module(f"unilip_jax.configs.{stage}").get_config("tiny")
  c.init_from = ""
  c.image_size = IMAGE_SIZE
  c.batch_size = 8
  c.total_steps = 6
  c.log_every_steps = 1
  c.checkpoint_every_steps = 3
  c.sample_every_steps = 100
  c.sample_count = 2
  c.sample_set = ("reconstruct", "folder", str(images))
  c.optimizer.warmup_steps = 2
  c.eval.every_steps = 100
  c.eval.at_start = False
  c.eval.batch_size = 8
  c.eval.llm = ""
  c.eval.sets = (("images", "native", "folder", str(images)),)
  c.data.train = (("folder", str(images), 1.0),)
  c.compilation_cache = ""
  if c.gan.weight:
    c.gan.start_step = 3
  for name, value in overrides.items():
    *parents, last = name.split("__")
    node = c
    for parent in parents:
      node = node[parent]
    if last not in node:
      raise KeyError(name)
    node[last] = value
  return c


def text_config(stage: str, **overrides):
  """Config of an understanding or generation stage at tiny, shortened; overrides as of `config`."""
  generation = stage != "tiny_mllm"
  fields = dict(
      batch_size=16 if generation else 4,
      image_size=64 if stage == "gen1" else IMAGE_SIZE, eval__sets=(), sample_every_steps=0,
      data__train=(("shapes", "train", 1.0, {"count": 24}),))
  if stage in ("gen2", "gen3", "few_step", "reca"):
    fields |= dict(data__edit=(("shapes", "train", 1.0, {"count": 24}),), data__edit_share=0.5)
  return config(stage, **fields | overrides)


def weights(task) -> dict[str, Any]:
  """Weights of a task's modules, sampled with NumPy: their initialisation would compile for seconds."""
  rng = np.random.default_rng(0)

  def sampled(path, shape):
    if path.endswith("scale"):
      return np.ones(shape, np.float32)
    fan_in = np.prod(shape[tree.is_scanned(path):-1]) or 1
    return rng.normal(0, min(fan_in**-0.5, 0.3), shape).astype(np.float32)

  shapes = {name: module for name, module in task.module_shapes.items() if name != "teacher"}  # as the DiT
  return task.fill_missing_modules(tree.unflatten(
      {path: sampled(path, s.shape) for path, s in tree.flatten(shapes).items()}))


def write_images(folder: pathlib.Path, count: int = 20) -> pathlib.Path:
  """`count` small JPEGs of random colour blobs."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  for i in range(count):
    coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((75, 60)).save(folder / f"{i:03d}.jpg", quality=95)
  return folder


def _slow_down(seconds: float) -> None:
  """Delays every batch by `seconds`, so that a test can end the run in the middle."""
  from unilip_jax.data import pipeline

  following = pipeline.TrainStream.__next__

  def slowly(self):
    time.sleep(seconds)
    return following(self)

  pipeline.TrainStream.__next__ = slowly


def main() -> None:
  from unilip_jax import train

  install()
  skip_flops()
  logging.set_verbosity(logging.INFO)
  stage, images, workdir, *fields = sys.argv[1:]
  overrides = dict(f.split("=", 1) for f in fields)
  overrides = {k: ast.literal_eval(v) for k, v in overrides.items()}
  _slow_down(overrides.pop("sleep", 0.0))
  train.train(config(stage, images, **overrides), workdir)


if __name__ == "__main__":
  main()
