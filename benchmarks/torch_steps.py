"""Training steps in PyTorch, of the networks in torch_tokenizer and torch_networks.

A user would run these instead of tasks/reconstruct.py and tasks/generate.py: autocast over float32
weights (frozen ones in the dtype of the run), SDPA, AdamW in the official groups, clipping, EMA. The
learning rates are constant, which costs no time. `load` gives a step the JAX weights, so that both sides
compute the same thing (tests/benchmarks/torch_steps_test.py). Used by benchmarks only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
import torch.nn.functional as F

from benchmarks import torch_networks, torch_perceptual, torch_tokenizer, torch_training
from unilip_jax.convert import engine
from unilip_jax.models import presets
from unilip_jax.ops import flow_schedules

_TEACHER = ("vision_tower", "mlp1")


class Reconstruct:
  """One update of stage 1, stage 2 or stage 448, the discriminator's included."""

  def __init__(self, preset: presets.Preset, config: Any, variant: torch_training.Variant,
               device: str = "cpu"):
    self.config, self.device = config, torch.device(device)
    self.model = torch_tokenizer.Tokenizer(preset.tokenizer)
    pattern, columns = config.param_rules[0]
    if pattern != "^(vision_tower|mlp1)/":
      raise ValueError(f"param_rules begin with {pattern!r}, which this step does not have")
    self.trains_vision = columns.get("train", True)
    self.model.vision.requires_grad_(self.trains_vision)
    self.teacher = self.perceptual = self.discriminator = None
    if config.loss.distill:
      self.teacher = torch_tokenizer.Vision(preset.tokenizer).requires_grad_(False)
      self.teacher.load_state_dict(self.model.vision.state_dict())
    if config.loss.perceptual:
      self.perceptual = torch_perceptual.Perceptual(preset.vgg, preset.convnext)
    if config.gan.weight and config.gan.start_step == 0:  # before its start nothing of it runs
      self.discriminator = torch_tokenizer.make_discriminator(preset.discriminator)
    networks = [n for n in (self.model, self.teacher, self.perceptual, self.discriminator) if n]
    for network in networks:
      network.to(self.device)
    for network, dtype in ((self.teacher, config.loss.teacher_dtype),
                           (self.perceptual, config.loss.perceptual_dtype)):
      if network and dtype == "bfloat16":
        network.to(torch.bfloat16)
    convolutional = [n for n in (self.model.decoder, self.perceptual, self.discriminator) if n]
    if variant.channels_last:
      for network in convolutional:
        network.to(memory_format=torch.channels_last)
    if variant.checkpointing:
      if self.trains_vision:
        torch_training.checkpoint_layers(self.model.vision.vit)
      for block in self.model.decoder.up_blocks:
        torch_training.checkpoint_blocks(block)
    if variant.compile:
      for network in [self.model.vision, self.model.decoder, self.discriminator, self.teacher]:
        if network:
          network.compile(dynamic=False)
      if self.perceptual:
        self.perceptual.compile(dynamic=False)
    named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
    self.trainer = torch_training.Trainer(
        named, config, scales={"vision.": columns.get("lr", 1.0)}, lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay, ema=True)
    if self.discriminator:
      self.adversary = torch_training.Trainer(
          dict(self.discriminator.named_parameters()), config, scales={}, lr=config.gan.lr,
          weight_decay=config.gan.weight_decay, ema=False)
      self.averages = [torch.zeros((), device=self.device) for _ in range(2)]

  def to_device(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The arrays of a batch that the step reads, as tensors."""
    return {"image": torch.tensor(batch["image"], device=self.device)}

  def gradients(self, batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], torch.Tensor]:
    """Runs the backward pass of the tokenizer's loss.

    Returns:
      (terms with the total "loss", reconstruction float32[B, 3, R, R] in [0, 1]).
    """
    loss = self.config.loss
    unit = torch_tokenizer.unit(batch["image"])
    image = torch_tokenizer.normalise(unit)
    with torch_training.autocast(self.device, self.config.dtype):
      out, features = self._forward(image)
    reconstruction = (out + 1) / 2
    terms = {"reconstruction_loss": F.mse_loss(reconstruction, unit)}
    total = loss.l2 * terms["reconstruction_loss"]
    if self.perceptual:
      with torch_training.autocast(self.device, loss.perceptual_dtype):
        terms["perceptual_loss"] = self.perceptual(reconstruction, unit, loss.lpips, loss.convnext)
      total = total + loss.perceptual * terms["perceptual_loss"]
    if self.teacher:
      with torch.no_grad(), torch_training.autocast(self.device, loss.teacher_dtype):
        target = self.teacher(image)
      terms["distill_loss"] = F.mse_loss(features.float(), target.float())
      total = total + loss.distill * terms["distill_loss"]
    if self.discriminator:
      self.discriminator.requires_grad_(False)
      terms["gan_loss"] = -self._logits(reconstruction).mean()
      total = total + self.config.gan.weight * terms["gan_loss"]
    total.backward()
    return {k: v.detach() for k, v in terms.items()} | {"loss": total.detach()}, reconstruction.detach()

  def _forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if self.trains_vision:
      return self.model(image)
    with torch.no_grad():
      features = self.model.vision(image)
    pixels = self.model.decoder(self.model.latents(features))
    return F.interpolate(pixels.float(), size=image.shape[-2:], mode="bilinear"), features

  def _logits(self, unit: torch.Tensor) -> torch.Tensor:
    with torch_training.autocast(self.device, self.config.dtype):
      return self.discriminator(unit).float()

  def __call__(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Updates everything; the metrics."""
    metrics, reconstruction = self.gradients(batch)
    metrics["grad_norm"] = self.trainer.clip()
    self.trainer.update()
    if self.discriminator:
      metrics |= self._update_discriminator(torch_tokenizer.unit(batch["image"]), reconstruction)
    return metrics

  def _update_discriminator(self, real, fake) -> dict[str, torch.Tensor]:
    gan = self.config.gan
    self.discriminator.requires_grad_(True)
    real, fake = self._logits(real), self._logits(fake)
    means = real.mean(), fake.mean()
    loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) + gan.lecam * (
        F.relu(means[0] - self.averages[1]).square() + F.relu(self.averages[0] - means[1]).square())
    self.averages = [gan.lecam_decay * a + (1 - gan.lecam_decay) * m.detach()
                     for a, m in zip(self.averages, means)]
    loss.backward()
    norm = self.adversary.clip()
    self.adversary.update()
    return {"discriminator_loss": loss.detach(), "discriminator_grad_norm": norm}


class Generate:
  """One update of gen2 or gen3: connector, queries, projector and DiT on the flow-matching loss.

  Each sub-batch goes forward and backward on its own, which needs the memory of the larger one.
  """

  def __init__(self, preset: presets.Preset, config: Any, variant: torch_training.Variant, image_slot: int,
               device: str = "cpu"):
    self.config, self.variant, self.image_slot = config, variant, image_slot
    self.device = torch.device(device)
    self.factor = config.generate.latent_scale or preset.factor
    self.model = model = torch_networks.Unilip(preset.unilip).requires_grad_(False)
    trained = (model.connector, model.projector, model.dit)
    for network in trained:
      network.requires_grad_(True)
    model.queries.requires_grad_(True)
    model.to(self.device)
    if config.dtype == "bfloat16":  # what trains stays float32, as in unilip_jax; officially nothing
      model.tokenizer.to(torch.bfloat16)
      model.llm.to(torch.bfloat16)
    if variant.checkpointing:
      torch_training.checkpoint_layers(model.connector)
      model.dit.enable_gradient_checkpointing()
      if variant.whole:
        torch_training.checkpoint_layers(model.llm)
    if variant.channels_last:
      model.dit.to(memory_format=torch.channels_last)
    if variant.compile:
      for network in (model.tokenizer.vision, model.llm.model, model.connector, model.dit):
        network.compile(dynamic=False)
    self.trainer = torch_training.Trainer(
        {n: p for n, p in model.named_parameters() if p.requires_grad}, config, scales={},
        lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay, ema=True)

  def to_device(self, batch: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """The arrays of a batch as tensors; latents and noise become NCHW."""
    def entry(name, x):
      x = torch.tensor(x, device=self.device)
      if name in ("latents", "noise"):
        return x.movedim(-1, -3).contiguous()
      return x.long() if name == "tokens" else x
    return {part: {k: entry(k, v) for k, v in arrays.items() if k != "_mask"}
            for part, arrays in batch.items()}

  def gradients(self, batch: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Backward of the mean over all examples: that mean, and the sub-batches'."""
    total = sum(len(part["tokens"]) for part in batch.values())
    metrics, loss = {}, 0.0
    for name, part in batch.items():
      losses = self._losses(part)
      (losses.sum() / total).backward()
      metrics[f"{name}_loss"] = losses.detach().mean()
      loss = loss + losses.detach().sum() / total
    return metrics | {"loss": loss}

  def _losses(self, part: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """float32[B]; samples times and noise unless the batch contains `normal` and `noise`."""
    samples = self.config.generate.noise_samples_per_image
    with torch_training.autocast(self.device, self.config.dtype):
      with torch.no_grad():
        latents = self.factor * self._latents(part).float()
        features = self._features(part)
      context, mask = self._context(part["tokens"], part["token_mask"], features)
    count = len(latents) * samples
    normal = part["normal"].reshape(-1) if "normal" in part else torch.randn(
        count, device=self.device)
    latents = latents.repeat_interleave(samples, 0)
    noise = part["noise"].reshape(latents.shape) if "noise" in part else torch.randn_like(latents)
    time, sigma = training_times(normal, self.config.generate.timestep_shift)
    sigma = sigma.view(-1, 1, 1, 1)
    with torch_training.autocast(self.device, self.config.dtype):
      velocity = self.model.velocity(
          (1 - sigma) * latents + sigma * noise, time, context.repeat_interleave(samples, 0),
          mask.repeat_interleave(samples, 0))
    losses = (velocity.float() - (noise - latents)).square().mean((1, 2, 3))
    return losses.view(-1, samples).mean(1)

  def _latents(self, part) -> torch.Tensor:
    """The target's latents, not scaled: of its pixels, or precomputed."""
    if "latents" in part:
      return part["latents"]
    tokenizer = self.model.tokenizer
    return tokenizer.latents(tokenizer.vision(torch_tokenizer.imagenet(part["image"])))

  def _features(self, part) -> torch.Tensor | None:
    if "cond_image" not in part:
      return None
    return self.model.tokenizer.vision(torch_tokenizer.imagenet(part["cond_image"][:, 0]))

  def _context(self, tokens, mask, features) -> tuple[torch.Tensor, torch.Tensor]:
    if self.variant.whole:
      return self.model.context(tokens, mask, self.image_slot, features)
    return prefixed_context(self.model, tokens, mask, self.image_slot, features)

  def __call__(self, batch: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Updates everything; the metrics."""
    metrics = self.gradients(batch)
    metrics["grad_norm"] = self.trainer.clip()
    self.trainer.update()
    return metrics


def training_times(normal: torch.Tensor, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
  """(times 1 … 1000, σ) of standard normal samples, as schedules.training_times."""
  steps = flow_schedules.TRAIN_STEPS
  times = steps - (steps * normal.sigmoid()).floor().clamp(max=steps - 1)
  times = times * shift / (1 + (shift - 1) * times / steps)
  return times, times / steps


def prefixed_context(
    model: torch_networks.Unilip, tokens: torch.Tensor, mask: torch.Tensor, image_token: int,
    features: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
  """`model.context` with the prompt's pass through the LLM outside of the backward pass."""
  count = model.queries.shape[0]
  valid = F.pad(mask, (0, count), value=True)
  positions = (valid.long().cumsum(1) - 1).clamp(min=0)
  before, behind = positions.split([tokens.shape[1], count], dim=1)
  with torch.no_grad():
    x = model.embed(tokens, image_token, features)
    prompt = model.llm.model(
        inputs_embeds=x, attention_mask=mask.long(), position_ids=before, use_cache=True)
    states = prompt.last_hidden_state
    if features is not None:
      slots = (tokens == image_token)[..., None]
      states = states.masked_scatter(slots, features.to(states.dtype))
  queries = model.queries[None].expand(len(tokens), -1, -1).to(x.dtype)
  hidden = model.llm.model(
      inputs_embeds=queries, attention_mask=valid.long(), position_ids=behind,
      past_key_values=prompt.past_key_values, use_cache=True).last_hidden_state
  states = model.connector(
      inputs_embeds=torch.cat([states, hidden], 1), position_ids=positions, use_cache=False,
      attention_mask={"full_attention": valid[:, None, None]}).last_hidden_state
  return model.projector(states), valid


def load(step: Reconstruct | Generate, modules: Mapping[str, Any], preset: presets.Preset) -> None:
  """Copies the JAX weights into the step's networks.

  Args:
    step: of the same config.
    modules: by module name, as of the task's init_modules.
    preset: dimensions.
  """
  if isinstance(step, Generate):
    torch_networks.load(step.model, modules)
    return
  names = ("vision_tower", "mlp1", "latent_head", "decoder")
  table = torch_networks.tables(preset.unilip)
  tokenizer = [r for r in table if r.path.split("/")[0] in names]
  _load(step.model, modules, tokenizer, names, "tokenizer.")
  if step.teacher:
    vision = [r for r in tokenizer if r.path.split("/")[0] in _TEACHER]
    _load(step.teacher, modules["teacher"], vision, _TEACHER, "tokenizer.vision.")
  if step.perceptual:
    _load(step.perceptual, modules, torch_perceptual.tables(preset.vgg, preset.convnext),
          ("lpips", "convnext"), "")
  if step.discriminator:
    tables = torch_tokenizer.discriminator_tables(preset.discriminator)
    _load(step.discriminator, modules["discriminator"], tables, None, "")


def _load(network: nn.Module, modules, table: Sequence[engine.Rule], names, prefix: str) -> None:
  params = modules if names is None else {name: modules[name] for name in names}
  state = {}
  for name, value in engine.to_torch(params, table, "float32").items():
    name = name.removeprefix(prefix)
    if name.startswith("down_blocks."):
      name = name.replace(".mlp.", ".")
    state[name] = torch.from_numpy(value)
  missing, unexpected = network.load_state_dict(state, strict=False)
  constant = {name for name, _ in network.named_buffers()}
  if unexpected or set(missing) - constant:
    raise ValueError(f"{type(network).__name__}: no weights for {missing}, no place for {unexpected}")
