"""A task: compress the features of the frozen CLIP tower into a few channels and restore them."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unilip_jax.common import tree
from unilip_jax.data import batch as batch_lib
from unilip_jax.models import presets
from unilip_jax.tasks import base, unilip_task

_CHANNELS = 16


class Bottleneck(nn.Module):
  """Dense to `channels`, then Dense back: [B, L, D] -> [B, L, D]."""

  channels: int

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    return nn.Dense(features.shape[-1], name="up")(nn.Dense(self.channels, name="down")(features))


class CompressFeatures(unilip_task.UnilipTask):
  """Optimizer, state, EMA, gradient accumulation and the non-finite rule come from UnilipTask."""

  bottleneck = Bottleneck(_CHANNELS)

  def init_modules(self, key):
    size = self.preset.tokenizer.vit.pixels_per_token
    image = jnp.zeros((1, size, size, 3))
    modules = dict(self.model.tokenizer.init(key, image, method="features")["params"])
    features = jnp.zeros((1, 1, self.preset.tokenizer.llm_width))
    return modules | {"bottleneck": self.bottleneck.init(key, features)["params"]}

  def model_spec(self):
    return {"format": 1, "modules": {
        "vision_tower": presets.to_json(self.preset.tokenizer.vit), "bottleneck": {"channels": _CHANNELS}}}

  def batch_spec(self, batch_size):
    return batch_lib.device_part(batch_lib.reconstruct_spec(batch_size, self.config.image_size))

  def fill_missing_modules(self, modules):
    return dict(modules)

  def required_modules(self):
    return {"vision_tower": "init_from", "mlp1": "init_from"}

  def _loss(self, trained, frozen, batch):
    params = tree.merge(trained, frozen)
    pixels = batch["image"][:, None]  # [B, 1, R, R, 3]: one image an example
    features = jax.lax.stop_gradient(self.model.pixel_features(params, pixels)).astype(jnp.float32)
    restored = self.bottleneck.apply({"params": params["bottleneck"]}, features)
    loss = jnp.square(restored - features).mean()
    return loss, {"loss": loss}

  def make_preview(self, mesh: jax.sharding.Mesh) -> base.Preview:
    del mesh
    return lambda params, batch: {}  # features are not images

  def log_settings(self):
    pass
