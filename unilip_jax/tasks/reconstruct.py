"""The reconstruction stages: stage 1, stage 2 and stage 448 (UniLIP section 3.1, two-stage training).

config.autoencoder="dcae" trains DC-AE itself instead of the tokenizer (configs/tiny_dcae.py).

A step computes a reconstruction, updates the tokenizer on L2 + perceptual + GAN + self-distillation and its
EMA, then the discriminator on the same reconstruction from before the update. The stages differ in their
configs. Two things differ from the official code. The discriminator gets images in [0, 1] in stage 1 too;
there the official range is wrong, and the discriminator never starts. The frozen encoder has no drop-path.
"""

from collections.abc import Mapping
import contextlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from unilip_jax.common import rectangles, tree
from unilip_jax.data import batch as batch_lib
from unilip_jax.losses import gan as gan_loss
from unilip_jax.losses import reconstruction as losses
from unilip_jax.models import dcae, discriminator, perceptual, presets, tokenizer
from unilip_jax.ops import image as image_ops
from unilip_jax.optim import optimizer, param_table, update
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base

AUTOENCODERS = {"unilip": tokenizer.MODULES, "dcae": ("encoder", "decoder")}  # modules of each
_TEACHER = ("vision_tower", "mlp1")  # modules of the frozen teacher of the self-distillation


class Reconstruct(base.ReconstructsImages):
  """Defines networks, first state, train step and reconstruction of a reconstruction config."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; allocates no array.

    Raises:
      ValueError: for settings that exclude each other.
    """
    update.check_grad_accum_steps(config)
    if config.lora.targets:
      raise ValueError("lora.targets: adapters train in generation and understanding (configs/lora.py, "
                       "configs/lora_chat.py), not in reconstruction; set it to ()")
    self.config = config
    self.preset = presets.get(config.size)
    dtype = jnp.dtype(config.dtype)
    if config.autoencoder not in AUTOENCODERS:
      raise ValueError(
          f"unknown autoencoder={config.autoencoder!r}; choose one of {', '.join(AUTOENCODERS)}")
    self.names = AUTOENCODERS[config.autoencoder]
    if config.autoencoder == "dcae":
      self.model = dcae.Autoencoder(
          self.preset.dcae_encoder, self.preset.tokenizer.decoder, dtype, config.remat.decoder)
    else:
      self.model = tokenizer.Tokenizer(
          self.preset.tokenizer, dtype=dtype,
          remat_vit=config.remat.vit, remat_decoder=config.remat.decoder)
    side = self.model.side
    if config.image_size % side:
      raise ValueError(
          f"image_size={config.image_size} is not a multiple of {side}, the side of one latent; "
          f"choose {round(config.image_size / side) * side}")
    for bucket in config.data.buckets:
      rectangles.check("data.buckets", bucket, config.image_size, side, budgets=1)
    loss_dtype = jnp.dtype(config.loss.perceptual_dtype)
    self.lpips = perceptual.Lpips(self.preset.vgg, dtype=loss_dtype)
    self.convnext = perceptual.ConvNext(self.preset.convnext, dtype=loss_dtype)
    self.discriminator = discriminator.Discriminator(self.preset.discriminator, dtype=dtype)
    # Of the frozen networks that only the loss uses.
    self._aux_dtypes = {"teacher": config.loss.teacher_dtype, "lpips": config.loss.perceptual_dtype,
                        "convnext": config.loss.perceptual_dtype}
    self.has_perceptual = config.loss.perceptual > 0
    self.has_teacher = config.loss.distill > 0
    self.has_gan = config.gan.weight > 0
    if self.has_teacher:
      if config.autoencoder == "dcae":
        raise ValueError("loss.distill needs a CLIP tower, which autoencoder='dcae' lacks: set it to 0")
      self._teacher = self.model.clone(
          dtype=jnp.dtype(config.loss.teacher_dtype), remat_vit="none", remat_decoder="none")
    self.columns = param_table.resolve(
        self.model_shapes(), config.param_rules, config.optimizer.no_decay)
    self._optimizer = update.make_adamw(config, self.columns, config.optimizer.weight_decay)
    if self.has_gan:
      gan_columns = param_table.resolve(
          self.module_shapes["discriminator"], (), config.optimizer.no_decay)
      self._gan_optimizer = update.make_adamw(config, gan_columns, config.gan.weight_decay)

  # ---- state

  def model_spec(self) -> dict[str, Any]:
    """Returns the model.json of a run, which describes its weights without the config."""
    preset = self.preset
    parts = {"encoder": preset.dcae_encoder, "decoder": preset.tokenizer.decoder}
    if self.config.autoencoder == "unilip":
      parts = {"tokenizer": preset.tokenizer}
    parts["discriminator"] = preset.discriminator
    return {"format": 1, "modules": {k: presets.to_json(v) for k, v in parts.items()}}

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a step's batch."""
    return batch_lib.device_part(
        batch_lib.reconstruct_spec(batch_size, self.config.image_size))

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Samples float32 weights of every network of this config, by module name."""
    size = self.config.image_size
    image = jnp.zeros((1, size, size, 3))
    keys = dict(zip(("model", "lpips", "convnext", "gan"), jax.random.split(key, 4)))
    modules = dict(self.model.init(keys["model"], image)["params"])
    if self.has_teacher:
      modules["teacher"] = {name: modules[name] for name in _TEACHER}
    if self.has_perceptual:
      modules["lpips"] = self.lpips.init(keys["lpips"], image, image)["params"]
      modules["convnext"] = self.convnext.init(keys["convnext"], image)["params"]
    if self.has_gan:
      modules["discriminator"] = self.discriminator.init(keys["gan"], image)["params"]
    return modules

  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the teacher to the modules of an earlier stage, which `init_from` names.

    The teacher is the original CLIP tower: the teacher of the earlier stage, or the frozen tower of an
    earlier stage without a teacher.
    """
    modules = dict(modules)
    if self.has_teacher and "teacher" not in modules and all(m in modules for m in _TEACHER):
      modules["teacher"] = {name: modules[name] for name in _TEACHER}
    return modules

  def required_modules(self) -> dict[str, str]:
    """Returns {module that must not start from random weights: config field that names its weights}."""
    names = ("lpips", "convnext") if self.has_perceptual else ()
    return {name: "loss.perceptual_weights" for name in names}

  def make_state(self, modules: Mapping[str, Any], seed: jax.Array) -> state_lib.TrainState:
    """Splits modules into trained and frozen ones, and adds the optimizers' zeros."""
    model = {name: modules[name] for name in self.names}
    params, frozen = tree.split(model, lambda path: self.columns[path].train)
    frozen = tree.map_with_path(lambda path, x: x.astype(self.columns[path].dtype), frozen)
    for name, dtype in self._aux_dtypes.items():
      if name in modules:
        frozen[name] = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), modules[name])
    gan = {}
    if self.has_gan:
      gan = {
          "params": modules["discriminator"],
          "opt_state": self._gan_optimizer.init(modules["discriminator"]),
          "updates": jnp.zeros((), jnp.int32),
          "lecam": gan_loss.init_averages()}
    return state_lib.TrainState(
        step=jnp.zeros((), jnp.int32), seed=jnp.asarray(seed, jnp.uint32), params=params,
        opt_state=self._optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if self.config.ema_decay > 0 else {},
        gan=gan, frozen=frozen)

  def model_params(self, state: state_lib.TrainState) -> dict[str, Any]:
    """Returns the weights for evaluation and sampling: the EMA, or the parameters without one."""
    return tree.merge(state.ema or state.params, self._frozen_model(state))

  def _frozen_model(self, state: state_lib.TrainState) -> dict[str, Any]:
    return {name: module for name, module in state.frozen.items() if name in self.names}

  # ---- the step

  def generator_loss(
      self, params: Any, state: state_lib.TrainState, unit: jax.Array
  ) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
    """Computes the tokenizer's loss.

    Args:
      params: the trained part of the tokenizer.
      state: frozen weights, discriminator and step.
      unit: float32[B, R, R, 3] in [0, 1].

    Returns:
      (float32[] total, (float32[B, R, R, 3] reconstruction, about [0, 1], {term: float32[]})).
    """
    config = self.config
    out = self.model.apply({"params": tree.merge(params, self._frozen_model(state))}, unit)
    reconstruction = activations.constrain(image_ops.unit_from_signed(out["reconstruction"]), "batch")
    terms = {"reconstruction_loss": losses.l2(reconstruction, unit)}
    total = config.loss.l2 * terms["reconstruction_loss"]
    if self.has_perceptual:
      with self._precision():
        terms["perceptual_loss"] = losses.perceptual(
            lambda a, b: self.lpips.apply({"params": state.frozen["lpips"]}, a, b),
            lambda x: self.convnext.apply({"params": state.frozen["convnext"]}, x),
            reconstruction, unit,
            lpips_weight=config.loss.lpips, convnext_weight=config.loss.convnext)
      total += config.loss.perceptual * terms["perceptual_loss"]
    if self.has_teacher:
      with self._precision():
        target = self._teacher.apply(
            {"params": state.frozen["teacher"]}, unit, method=self._teacher.features)
      terms["distill_loss"] = losses.distill(out["features"], jax.lax.stop_gradient(target))
      total += config.loss.distill * terms["distill_loss"]
    if self.has_gan:
      terms["gan_loss"] = self._once_started(
          state, lambda x: gan_loss.generator_loss(self._logits(state.gan["params"], x)),
          lambda x: jnp.zeros((), jnp.float32), reconstruction)
      total += config.gan.weight * terms["gan_loss"]
    terms["loss"] = total
    return total, (reconstruction, terms)

  def _precision(self) -> contextlib.AbstractContextManager[Any]:
    """Sets the precision of float32 multiplications that are traced inside, and of their gradients'."""
    own = self.config.float32_matmul_precision == "float32"
    return (jax.default_matmul_precision(self.config.loss.float32_matmul_precision) if own
            else contextlib.nullcontext())

  def _gathered_frozen(self, state: state_lib.TrainState) -> dict[str, Any]:
    frozen = {}
    for name, module in state.frozen.items():
      frozen |= update.gathered_frozen(self.config, {name: module}, self._aux_dtypes.get(name, ""))
    return frozen

  def _without_gan(self, params, state, pixels) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes `generator_loss` of uint8[B, R, R, 3], a mean over examples."""
    total, (_, terms) = self.generator_loss(params, state, image_ops.unit_from_pixels(pixels))
    return total, terms

  def train_step(
      self, state: state_lib.TrainState, batch: Mapping[str, jax.Array]
  ) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
    """Updates the tokenizer, the discriminator and the EMA once.

    Args:
      state: donated by the caller.
      batch: see `batch_spec`.

    Returns:
      (the next state, {metric: float32[]}), see update.keep_if_not_finite.
    """
    gan = state.gan
    pixels = activations.constrain(batch["image"], "batch")
    whole = state.replace(frozen=self._gathered_frozen(state))
    if self.has_gan:
      unit = image_ops.unit_from_pixels(pixels)
      grads, (reconstruction, metrics) = jax.grad(self.generator_loss, has_aux=True)(
          update.gathered(self.config, state.params), whole, unit)
      grads = update.scattered(self.config, grads)
    else:
      grads, metrics = update.gradients(
          self.config, lambda params, part: self._without_gan(params, whole, part), state.params, pixels)
    fields, more = update.apply_gradients(self.config, self._optimizer, state, grads)
    metrics |= more
    if self.has_gan:
      gan, gan_metrics = self._once_started(
          state, self._discriminator_update, self._discriminator_rest,
          gan, jax.lax.stop_gradient(reconstruction), unit)
      metrics.update(gan_metrics)
    return update.keep_if_not_finite(state.replace(**fields, gan=gan), state, metrics)

  def _once_started(self, state: state_lib.TrainState, then: Any, before: Any, *operands: Any) -> Any:
    """Calls `then` from the discriminator's start on, `before` earlier.

    There is no condition in the program if the discriminator starts at the first step.
    """
    if self.config.gan.start_step <= 0:
      return then(*operands)
    return jax.lax.cond(state.step >= self.config.gan.start_step, then, before, *operands)

  def _logits(self, params: Any, unit: jax.Array) -> jax.Array:
    return self.discriminator.apply({"params": params}, unit)

  def _discriminator_update(self, gan, fake, real):
    config = self.config.gan

    def loss_fn(params):
      return gan_loss.discriminator_loss(
          self._logits(params, real), self._logits(params, fake), gan["lecam"],
          lecam_weight=config.lecam, decay=config.lecam_decay)

    grads, (lecam, terms) = jax.grad(loss_fn, has_aux=True)(gan["params"])
    grads, norm = optimizer.clip(grads, self.config.optimizer.clip_norm)
    updates, opt_state = self._gan_optimizer.update(grads, gan["opt_state"], gan["params"])
    lr = optimizer.cosine(
        gan["updates"], lr=config.lr, end_lr=config.end_lr, warmup=config.warmup_steps,
        total=config.horizon or 4 * self.config.total_steps - config.start_step)
    new = {"params": optax.tree.add_scale(gan["params"], -lr, updates), "opt_state": opt_state,
           "updates": gan["updates"] + 1, "lecam": lecam}
    return new, terms | {"discriminator_grad_norm": norm, "discriminator_lr": lr}

  def _discriminator_rest(self, gan, fake, real):
    """Leaves the discriminator as it is before its start, with metrics 0."""
    _, metrics = jax.eval_shape(self._discriminator_update, gan, fake, real)
    return gan, jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)

  # ---- use

  def reconstruct(self, params: Any, pixels: jax.Array) -> jax.Array:
    """Encodes and decodes: uint8[B, R, R, 3] -> uint8[B, R, R, 3]."""
    unit = image_ops.unit_from_pixels(pixels)
    out = self.model.apply({"params": params}, unit)
    return image_ops.pixels_from_unit(image_ops.unit_from_signed(out["reconstruction"]))

  def make_preview(self, mesh: jax.sharding.Mesh) -> base.Preview:
    """Makes the rows of the sample grids: "input" and "reconstruction"."""
    reconstruct = jax.jit(
        activations.under(mesh, self.reconstruct), out_shardings=mesh_lib.replicated(mesh))

    def preview(params: base.Params, batch: base.Batch) -> dict[str, np.ndarray]:
      pixels = mesh_lib.put(batch["image"], mesh_lib.batch_sharding(mesh))
      return {"input": batch["image"], "reconstruction": np.asarray(reconstruct(params, pixels))}

    return preview

  def model_shapes(self) -> dict[str, Any]:
    """Returns the shapes of the modules that evaluation needs."""
    return {name: self.module_shapes[name] for name in self.names}

  def log_settings(self) -> None:
    """Logs settings that are not in the config."""
    if not self.has_perceptual:
      logging.info("perceptual weight 0: no LPIPS and ConvNeXt weights are used")
    if self.has_gan:
      logging.info("discriminator starts at step %d", self.config.gan.start_step)
    else:
      logging.info("no discriminator: gan.weight is 0")
