"""A tokenizer of one parameter and a data pipeline of arrays, for tests of evaluators."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from unilip_jax.ops import image as image_ops

# Takes bright pixels out of [-1, 1]. The 256 values of a pixel become others at least 1/8 away from
# the halves at which rounding to 8 bits turns on the last bit of a float.
GAIN = 1.25


class Model(nn.Module):
  """Returns its input times `gain` in [-1, 1]; through 28-pixel means in the padded protocol."""

  side = 28  # pixels of a token
  traces = []  # noqa: RUF012

  def setup(self):
    self.gain = self.param("gain", nn.initializers.ones, ())

  def _signed(self, image_imagenet):
    Model.traces.append(image_imagenet.shape)
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3)
                 for v in (image_ops.IMAGENET_MEAN, image_ops.IMAGENET_STD))
    return image_ops.signed_from_unit(image_imagenet * std + mean)

  def __call__(self, image_imagenet, *, align_corners=False):
    signed = self._signed(image_imagenet)
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


def task():
  Model.traces.clear()
  return types.SimpleNamespace(model=Model(), lpips=Lpips())


def prompt_loss(params, batch, key):
  """Stands in for Generate.losses: depends on which prompt stands beside which image."""
  del key
  image = jnp.asarray(batch["image"], jnp.float32).mean((1, 2, 3)) / 255
  return params * image * (jnp.asarray(batch["tokens"]).sum(1) % 97)


def preview(params, batch):
  """Stands in for Reconstruct.preview: the image, black where its mean is low."""
  image = batch["image"]
  kept = image.astype(jnp.float32).mean((1, 2, 3), keepdims=True) > 118 * params["gain"]
  return {"reconstruction": jnp.where(kept, image, 0).astype(jnp.uint8)}


def scores_of_blocks(mesh, folder) -> dict[str, float]:
  """The evaluators of generation and of scenes, 11 examples each in batches of 8."""
  from tests import micro
  from unilip_jax.evals import flow
  from unilip_jax.shapes import evaluators

  fields = dict(eval__batch_size=8, eval__max_examples=11, data__render_dir=str(folder))
  pairs = flow.make_evaluator(
      micro.text_config("gen2", **fields), ("pairs", "flow_t2i", "shapes", "test", {"count": 11}),
      task=types.SimpleNamespace(losses=prompt_loss), mesh=mesh, workdir=str(folder))
  scenes = evaluators.make_evaluator(
      micro.config("stage2", image_size=112, **fields), ("scenes", "scenes", "shapes", "test"),
      task=types.SimpleNamespace(preview=preview), mesh=mesh)
  return pairs(jnp.float32(2)) | scenes({"gain": jnp.float32(1)})


def config(batch_size: int = 8, sets=(("set", "native", "fake", "x"),)):
  return ml_collections.ConfigDict({
      "eval": {"batch_size": batch_size, "ssim_data_range_2": True, "sets": sets},
      "loss": {"perceptual_weights": ""}})


def images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
  """Smooth colours: uint8[count, size, size, 3]."""
  coarse = np.random.default_rng(seed).random((count, 4, 4, 3)).astype(np.float32)
  fine = jax.image.resize(coarse, (count, size, size, 3), "cubic")
  return np.clip(np.round(np.asarray(fine) * 255), 0, 255).astype(np.uint8)


def eval_batches_of(pixels: np.ndarray):
  """Stands in for pipeline.eval_batches: process p reads examples p, p + n, p + 2n, ..."""

  def eval_batches(config, eval_set, *, process_index, process_count, workdir):
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
