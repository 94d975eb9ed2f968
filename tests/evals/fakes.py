"""Fake tasks, a tokenizer of one parameter and a data pipeline of arrays, for tests of evaluators."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from unilip_jax.evals import base, inception
from unilip_jax.models import inception as inception_model
from unilip_jax.ops import image as image_ops
from unilip_jax.tasks import base as tasks_base

# Takes bright pixels out of [-1, 1]. The 256 values of a pixel become others at least 1/8 away from
# the halves at which rounding to 8 bits turns on the last bit of a float.
GAIN = 1.25


class Model(nn.Module):
  """Returns its input times `gain` in [-1, 1]; through 28-pixel means in the padded protocol."""

  side = 28  # pixels of a token
  traces = []  # noqa: RUF012

  def setup(self):
    self.gain = self.param("gain", nn.initializers.ones, ())

  def __call__(self, unit, *, align_corners=False):
    Model.traces.append(unit.shape)
    signed = image_ops.signed_from_unit(unit)
    if align_corners:
      b, r = signed.shape[:2]
      signed = signed.reshape(b, r // 28, 28, r // 28, 28, 3).mean((2, 4))
      signed = jnp.repeat(jnp.repeat(signed, 32, 1), 32, 2)
      signed = image_ops.resize_bilinear(signed, r, r, align_corners=True)
    return {"reconstruction": self.gain * signed}


class Lpips(nn.Module):
  """weight × mean squared difference."""

  @nn.compact
  def __call__(self, a, b):
    return self.param("weight", nn.initializers.ones, ()) * jnp.square(a - b).mean((1, 2, 3))


class Extractor(inception.Extractor):
  """Features of 7 × 7 pixels by two random matrices, which compile in no time."""

  def outputs(self, params, x):
    features = jnp.tanh(jnp.matmul(
        x[:, 20::43, 20::43].reshape(len(x), -1), params["features"], precision="highest"))
    return features, jnp.matmul(features, params["logits"], precision="highest")


def extractor(mesh, protocol: str = "torch-fidelity") -> Extractor:
  """Replaces Context.inception."""
  random = np.random.default_rng(0)
  params = {"features": random.standard_normal((147, 16)).astype(np.float32) / 8,
            "logits": random.standard_normal((16, 12)).astype(np.float32)}
  return Extractor(inception_model.InceptionDims(divisor=128, classes=12), protocol, params, "fake", mesh)


def task_of(capability: type[tasks_base.Task], **attributes: Any) -> tasks_base.Task:
  """A task of one of the classes of tasks/base.py that has these attributes and no others."""
  cls = type(f"Fake{capability.__name__}", (capability,), {})
  cls.__abstractmethods__ = frozenset()  # a test gives every method that is called
  fake = cls()
  vars(fake).update(attributes)
  return fake


def task() -> tasks_base.Task:
  """Reconstructs with `Model`."""
  Model.traces.clear()
  return task_of(tasks_base.ReconstructsImages, model=Model(), lpips=Lpips())


def context(config, task, mesh, workdir="", **fields) -> base.Context:
  """The context of an evaluator."""
  return base.Context(config, task, mesh, str(workdir), **fields)


def prompt_loss(params, batch, key):
  """Replaces Generate.losses: depends on the pairing of prompts and images."""
  del key
  image = jnp.asarray(batch["image"], jnp.float32).mean((1, 2, 3)) / 255
  return params * image * (jnp.asarray(batch["tokens"]).sum(1) % 97)


def reconstruct(params, pixels):
  """Replaces Reconstruct.reconstruct: returns the image, or black if its mean is low."""
  is_bright = pixels.astype(jnp.float32).mean((1, 2, 3), keepdims=True) > 118 * params["gain"]
  return jnp.where(is_bright, pixels, 0).astype(jnp.uint8)


def scores_on_shapes(mesh, folder) -> dict[str, float]:
  """Scores of the evaluators of generation and of scenes: 11 examples each in batches of 8."""
  from tests import micro

  fields = dict(eval__batch_size=8, eval__max_examples=11, data__render_dir=str(folder))
  pairs = base.make_evaluators(
      micro.text_config(
          "gen2", **fields | {"eval__sets": (("pairs", "flow_t2i", "shapes", "test", {"count": 11}),)}),
      task_of(tasks_base.MatchesFlow, losses=prompt_loss), mesh, str(folder))["pairs"]
  config = micro.config(
      "stage2", image_size=112, eval__sets=(("scenes", "scenes", "shapes", "test"),), **fields)
  scenes = base.make_evaluators(
      config, task_of(tasks_base.ReconstructsImages, reconstruct=reconstruct), mesh, str(folder))["scenes"]
  return pairs(jnp.float32(2)) | scenes({"gain": jnp.float32(1)})


def config(batch_size: int = 8, sets=(("set", "native", "fake", "x"),)):
  return ml_collections.ConfigDict({
      "eval": {"batch_size": batch_size, "ssim_data_range_2": True, "sets": sets, "max_examples": 0,
               "inception": "", "inception_protocol": "torch-fidelity"},
      "image_size": 32, "size": "tiny", "mesh": {"min_shard_size": 2**16},
      "loss": {"perceptual_weights": ""}})


def images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
  """Smooth colours: uint8[count, size, size, 3]."""
  coarse = np.random.default_rng(seed).random((count, 4, 4, 3)).astype(np.float32)
  fine = jax.image.resize(coarse, (count, size, size, 3), "cubic")
  return np.clip(np.round(np.asarray(fine) * 255), 0, 255).astype(np.uint8)


def eval_batches_of(pixels: np.ndarray):
  """Replaces pipeline.eval_batches: process p reads examples p, p + n, p + 2n, ..."""

  def eval_batches(config, name, protocol, spec, *, process_index, process_count, workdir):
    del name, protocol, spec, workdir
    local = config.eval.batch_size // process_count
    ids = np.arange(process_index, len(pixels), process_count)
    for batch in range(-(-len(pixels) // (local * process_count))):
      chosen = ids[batch * local:(batch + 1) * local]
      more = local - len(chosen)
      padding = np.random.default_rng(9).integers(0, 256, (more, *pixels.shape[1:]))
      yield {
          "image": np.concatenate([pixels[chosen], padding.astype(np.uint8)]),
          "_mask": np.arange(local) < len(chosen),
          "_id": np.concatenate([chosen, np.full(more, -1)]).astype(np.int64)}

  return eval_batches
