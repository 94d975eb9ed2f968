"""Flow matching: trains a DiT to generate latents of images from prompts (UniLIP section 3.2).

A step mixes a text→image and an edit sub-batch, which the DiT takes as one batch. Subclasses define the
condition of the DiT (tasks/generate.py).
"""

import abc
from collections.abc import Mapping
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections

from unilip_jax.common import rectangles, tree
from unilip_jax.data import batch as batch_lib
from unilip_jax.losses import flow
from unilip_jax.models import dcae, presets
from unilip_jax.ops import image as image_ops
from unilip_jax.ops import seeds
from unilip_jax.sharding import activations
from unilip_jax.tasks import base, unilip_task

TARGETS = ("unilip", "dcae")
_TIMES, _NOISE = 0, 1  # purposes of a step's randomness, per sub-batch


class FlowMatching(unilip_task.UnilipTask, base.MatchesFlow):
  """Defines targets, noise and loss; a subclass adds networks and `condition`.

  Attributes:
    encoder: DC-AE's encoder, which encodes the target latents if generate.target is "dcae".
    latent_scale: the DiT's input is latents × latent_scale.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; allocates no array.

    Raises:
      ValueError: for settings that exclude each other.
    """
    if config.generate.target not in TARGETS:
      raise ValueError(
          f"generate.target={config.generate.target!r}; choose one of {', '.join(TARGETS)}")
    self.to_dcae = config.generate.target == "dcae"
    if self.to_dcae and config.data.edit_share:
      raise ValueError("generate.target='dcae' trains on text→image alone: set data.edit_share=0")
    preset = presets.get(config.size)
    self.encoder = dcae.Encoder(preset.dcae_encoder, jnp.dtype(config.dtype))
    self.latent_scale = config.generate.latent_scale or (
        preset.dcae_encoder.scaling_factor if self.to_dcae else preset.factor)
    # Pixels per side of one latent.
    self._side = (preset.dcae_encoder.pixels_per_latent if self.to_dcae
                  else preset.tokenizer.vit.pixels_per_token)
    super().__init__(config)
    size, side = config.image_size, self._side
    if size % side:
      raise ValueError(f"image_size={size} is not a multiple of {side}, the side of one latent; "
                       f"choose {round(size / side) * side}")
    for bucket in config.data.buckets:
      rectangles.check("data.buckets", bucket, size, side, budgets=1)

  @abc.abstractmethod
  def condition(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Computes the states of a sub-batch's prompts to which the DiT attends.

    Returns:
      (states dtype[B, S, caption_width], mask bool[B, S]).
    """

  def batch_spec(self, batch_size: int) -> dict[str, Any]:
    """Returns shapes and dtypes of a step's batch: sub-batches by name."""
    config = self.config
    sizes = batch_lib.part_sizes(config)
    if sum(sizes.values()) != batch_size:
      raise ValueError(f"batch_size={batch_size} differs from the config's {config.batch_size}")
    lengths = {"t2i": config.text.t2i_length, "edit": config.text.edit_length}
    specs = {"t2i": batch_lib.t2i_spec, "edit": batch_lib.edit_spec}
    latents = self.latent_shape(1)[1:] if config.data.latents_dir else None
    return batch_lib.device_part({
        n: specs[n](size, config.image_size, lengths[n], latents) for n, size in sizes.items()})

  def init_encoder(self, key: jax.Array) -> dict[str, Any]:
    """Samples {"encoder": random weights of DC-AE's encoder}; {} if the targets are not its latents."""
    if not self.to_dcae:
      return {}
    side = 2 * self.preset.dcae_encoder.pixels_per_latent
    image = jnp.zeros((1, side, side, 3))
    return {"encoder": self.encoder.init(jax.random.fold_in(key, 1), image)["params"]}

  def latent_shape(self, batch_size: int) -> tuple[int, int, int, int]:
    """Returns the shape [B, h, w, C] of the latents of `batch_size` images."""
    h = self.config.image_size // self._side
    return batch_size, h, h, self.model.dims.dit.channels

  # ---- targets

  @property
  def target_modules(self) -> tuple[str, ...]:
    """Modules that encode images as target latents."""
    return ("encoder",) if self.to_dcae else ("vision_tower", "mlp1", "latent_head")

  def encode(self, params: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
    """Computes the target latents of the DiT, unscaled.

    Args:
      params: of `target_modules`.
      pixels: uint8[B, H, W, 3].

    Returns:
      dtype[B, h, w, C].
    """
    unit = image_ops.unit_from_pixels(pixels)
    if self.to_dcae:
      return self.encoder.apply({"params": params["encoder"]}, image_ops.signed_from_unit(unit))
    return self.model.tokenizer.apply({"params": params}, unit, method="encode")[0]

  def targets(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> jax.Array:
    """Computes scaled target latents, float32[B, h, w, C].

    They are encoded here, or read from disk (training/target_latents.py).
    """
    latents = batch["latents"] if "latents" in batch else self.encode(params, batch["image"])
    return activations.constrain(self.latent_scale * latents.astype(jnp.float32), "batch")

  # ---- the loss

  def losses(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], key: jax.Array
  ) -> jax.Array:
    """Computes float32[B], the flow-matching loss of each example of a sub-batch."""
    return self._losses(params, [self.sample_noise(batch, key)])[0]

  def sample_noise(self, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Adds the random numbers of a sub-batch's loss, n = noise_samples_per_image for each example.

    Returns:
      the entries of `batch`, and
      normal: float32[B, n], from which the times follow (flow_schedules.training_times).
      noise: float32[B, n, h, w, C].
    """
    count, n = batch["tokens"].shape[0], self.config.generate.noise_samples_per_image
    normal = jax.random.normal(jax.random.fold_in(key, _TIMES), (count * n,))
    grid = batch["latents"].shape[1:3] if "latents" in batch else (
        side // self._side for side in batch["image"].shape[1:3])
    shape = (count * n, *grid, self.model.dims.dit.channels)
    noise = jax.random.normal(jax.random.fold_in(key, _NOISE), shape)
    by_example = lambda x: x.reshape(count, n, *x.shape[1:])
    return dict(batch) | {"normal": by_example(normal), "noise": by_example(noise)}

  def _losses(self, params, parts) -> list[jax.Array]:
    """Computes `losses` of each of several sub-batches, which `sample_noise` has completed."""
    latents, normal, noise = self._joined(params, parts, ("normal", "noise"))
    contexts, masks = zip(*[self.condition(params, p) for p in parts])
    _, losses = flow.flow_loss(
        lambda z, t: self.velocity(params, z, t, contexts, masks), latents, normal, noise,
        shift=self.config.generate.timestep_shift)
    return self._by_part(losses, parts)

  def velocity(self, params, latents, time, contexts, masks) -> jax.Array:
    """Runs the DiT that is trained; arguments as of models/unilip.py, one context for each sub-batch."""
    return self.model.velocity(params, latents, time, contexts, masks)

  def _joined(self, params, parts, names) -> list[jax.Array]:
    """Joins targets and entries [B, n, …] of sub-batches, n rows for each example.

    Sub-batches have different text lengths, so each is conditioned separately. The DiT, which has most of
    the weights, takes all of them at once.
    """
    n = parts[0]["noise"].shape[1]
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    repeated = lambda latents: flat(jnp.repeat(latents[:, None], n, axis=1))
    joined = lambda values: activations.constrain(activations.join(values), "batch")
    return [joined([repeated(jax.lax.stop_gradient(self.targets(params, p))) for p in parts]),
            *(joined([flat(p[name]) for p in parts]) for name in names)]

  def _by_part(self, values, parts) -> list[jax.Array]:
    """Splits float32[Σ B_i · n] into the means of the examples of each sub-batch."""
    n = parts[0]["noise"].shape[1]
    return [p.reshape(-1, n).mean(1)
            for p in activations.part(values, [p["noise"].shape[0] for p in parts])]

  def prepare(self, state, batch) -> dict[str, Any]:
    """Samples times and noise for the complete batch: they do not depend on its micro-batches."""
    key = jax.random.fold_in(seeds.key(state.seed), state.step)
    return {name: self.sample_noise(part, jax.random.fold_in(key, i))
            for i, (name, part) in enumerate(batch.items())}

  def _loss(self, trained, frozen, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = tree.merge(trained, frozen)
    losses = dict(zip(batch, self._losses(params, list(batch.values()))))
    terms = {f"{name}_loss": value.mean() for name, value in losses.items()}
    # Sub-batches are summed separately: a joined array would have another layout over the devices.
    terms["loss"] = sum(v.sum() for v in losses.values()) / sum(v.size for v in losses.values())
    return terms["loss"], terms

  def log_settings(self) -> None:
    """Logs settings that are not in the config."""
    logging.info("position embedding of the DiT: %s; latents are scaled by %g; condition: %s",
                 "added" if self.preset.dit.positions else "none", self.latent_scale,
                 self.config.generate.condition)
