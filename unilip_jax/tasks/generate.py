"""The generation stages: queries, connector and DiT learn to make images from prompts and edits.

UniLIP section 3.2. One step mixes a text→image and an edit sub-batch. The frozen causal LLM runs over
the prompts without a backward pass; its keys and values enter the pass over the queries, whose
gradients equal those of a whole forward. gen1, gen2 and gen3 differ in their configs.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections

from unilip_jax import batch as batch_lib
from unilip_jax import presets, sharding, tree
from unilip_jax.blocks import language
from unilip_jax.data import text as text_lib
from unilip_jax.losses import flow
from unilip_jax.models import clauses, connector, dcae
from unilip_jax.ops import image as image_ops
from unilip_jax.sampling import images
from unilip_jax.tasks import unilip_task

TARGETS = ("unilip", "dcae")
READERS = ("llm", "clauses")
_TIMES, _NOISE = 0, 1  # purposes of a step's randomness, per sub-batch


class Generate(unilip_task.UnilipTask):
  """Networks, targets, loss and sampling of a generation config."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; no array is made.

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
    self.factor = config.generate.factor or (
        preset.dcae_encoder.scaling_factor if self.to_dcae else preset.factor)
    # Pixels per side of one latent.
    self._side = (2 ** (len(preset.tokenizer.decoder.channels) - 1) if self.to_dcae
                  else 2 * preset.tokenizer.vit.patch)
    self._clauses = self._make_clauses(config, preset)
    super().__init__(config)
    size, side = config.image_size, self._side
    if size % side:
      raise ValueError(f"image_size={size} is not a multiple of {side}, the side of one latent; "
                       f"choose {round(size / side) * side}")
    if not self.to_dcae:
      self._check_image_slots()

  def _make_clauses(self, config, preset: presets.Preset) -> clauses.Clauses | None:
    """The reader of a DiT without an LLM; None with one."""
    if config.generate.reader not in READERS:
      raise ValueError(
          f"generate.reader={config.generate.reader!r}; choose one of {', '.join(READERS)}")
    if config.generate.reader == "llm":
      return None
    if config.data.edit_share or config.sample_every_steps:
      raise ValueError("generate.reader='clauses' reads text alone and draws no samples: set "
                       "data.edit_share=0 and sample_every_steps=0")
    text = text_lib.Text(config.text.tokenizer)
    starts = tuple(text.encode(word)[0] for word in language.CLAUSE_STARTS)
    return clauses.Clauses(preset.llm.rows, preset.dit.caption_width, starts,
                           language.MAX_CLAUSES, jnp.dtype(config.dtype))

  # ---- state

  def dims(self) -> dict[str, Any]:
    """model.json of a run: what is needed to read its weights."""
    dims = self.model.dims
    names = ("dit",) if self._clauses else ("tokenizer", "llm", "connector", "dit")
    return {
        "format": 1,
        "modules": {name: presets.to_json(getattr(dims, name)) for name in names},
        "generate": self.config.generate.to_dict() | {"factor": self.factor}}

  def batch_spec(self, batch_size: int) -> dict[str, Any]:
    """Shapes of what a step takes: sub-batches by name."""
    config = self.config
    sizes = batch_lib.part_sizes(config)
    if sum(sizes.values()) != batch_size:
      raise ValueError(f"a batch of {batch_size}, but the config's holds {config.batch_size}")
    lengths = {"t2i": config.text.t2i_length, "edit": config.text.edit_length}
    specs = {"t2i": batch_lib.t2i_spec, "edit": batch_lib.edit_spec}
    latents = self.latent_shape(1)[1:] if config.data.latents_dir else None
    return batch_lib.device_part({
        n: specs[n](size, config.image_size, lengths[n], latents) for n, size in sizes.items()})

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Random weights of every network this config uses, by module name, float32."""
    modules = self.model.init(key)
    if self._clauses:
      kept = ("dit",) if self.to_dcae else ("dit", *self.target_modules)
      modules = {name: modules[name] for name in kept}
      modules["clauses"] = self._clauses.init(
          jax.random.fold_in(key, 2), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.bool_))["params"]
    if self.to_dcae:
      side = 2 ** len(self.preset.dcae_encoder.channels)
      modules["encoder"] = self.encoder.init(
          jax.random.fold_in(key, 1), jnp.zeros((1, side, side, 3)))["params"]
    return modules

  def adopt(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Completes loaded modules: without a connector, the LLM's last layers are its start."""
    modules = dict(modules)
    if "llm" in modules and "connector" not in modules:
      modules["connector"] = connector.from_llm(modules["llm"], self.model.dims.connector.depth)
    return modules

  def required_modules(self) -> dict[str, str]:
    """Modules that must not stay random, with the config field that names their weights.

    At tiny size everything may start from random weights.
    """
    if self.config.size == "tiny":
      return {}
    # gen1 has no use for latent head and decoder, but hands them on to gen2.
    target = ("encoder",) if self.to_dcae else ()
    return dict.fromkeys(
        ("vision_tower", "mlp1", "llm", "dit", "latent_head", "decoder", *target), "init_from")

  # ---- the step

  @property
  def target_modules(self) -> tuple[str, ...]:
    """The modules that make the target latents."""
    return ("encoder",) if self.to_dcae else ("vision_tower", "mlp1", "latent_head")

  def encode(self, params: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
    """The latents that the DiT learns to make, not scaled.

    Args:
      params: of `target_modules`.
      pixels: uint8[B, R, R, 3].

    Returns:
      dtype[B, h, w, C].
    """
    unit = image_ops.unit_from_pixels(pixels)
    if self.to_dcae:
      return self.encoder.apply({"params": params["encoder"]}, image_ops.signed_from_unit(unit))
    return self.model.tokenizer.apply(
        {"params": params}, image_ops.imagenet_from_unit(unit), method="encode")[0]

  def targets(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> jax.Array:
    """float32[B, h, w, C]: what the DiT learns to make, scaled; made here or before (caching.py)."""
    latents = batch["latents"] if "latents" in batch else self.encode(params, batch["image"])
    return sharding.constrain(self.factor * latents.astype(jnp.float32), "latents")

  def condition(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """(context, mask) of a sub-batch's prompts; gradients reach queries, connector and projector."""
    if self._clauses:
      return self._clauses.apply(
          {"params": params["clauses"]}, batch["tokens"], batch["token_mask"])
    states, cache = jax.lax.stop_gradient(self.model.prompt(
        params, batch["tokens"], batch["token_mask"], self.image_slot,
        self.model.pixel_features(params, batch.get("cond_image"))))
    return self.model.context(params, states, cache)

  def losses(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], key: jax.Array
  ) -> jax.Array:
    """float32[B]: flow-matching loss of each example of a sub-batch."""
    return self._losses(params, [self.with_draws(batch, key)])[0]

  def with_draws(self, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Adds to a sub-batch what its loss draws.

    Returns:
      the entries of `batch`, and
      normal: float32[B, draws], picks the times (schedules.training_times).
      noise: float32[B, draws, h, w, C].
    """
    count, draws = batch["tokens"].shape[0], self.config.generate.draws
    normal = jax.random.normal(jax.random.fold_in(key, _TIMES), (count * draws,))
    noise = jax.random.normal(jax.random.fold_in(key, _NOISE), self.latent_shape(count * draws))
    pair = lambda x: x.reshape(count, draws, *x.shape[1:])
    return dict(batch) | {"normal": pair(normal), "noise": pair(noise)}

  def _losses(self, params, parts) -> list[jax.Array]:
    """`losses` of each of the sub-batches that went through `with_draws`.

    Each has its own text length and goes through LLM and connector by itself; the DiT, whose weights
    are the most, sees all of them at once.
    """
    draws = parts[0]["normal"].shape[1]
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    repeated = lambda latents: flat(jnp.repeat(latents[:, None], draws, axis=1))
    joined = lambda values: sharding.constrain(sharding.join(values), "latents")
    latents = joined([repeated(jax.lax.stop_gradient(self.targets(params, p))) for p in parts])
    normal, noise = (joined([flat(p[name]) for p in parts]) for name in ("normal", "noise"))
    contexts, masks = zip(*[self.condition(params, p) for p in parts])
    _, losses = flow.flow_loss(
        lambda z, t: self.model.velocity(params, z, t, contexts, masks), latents, normal, noise,
        shift=self.config.generate.shift)
    return [p.reshape(-1, draws).mean(1)
            for p in sharding.part(losses, [p["normal"].shape[0] for p in parts])]

  def prepare(self, state, batch) -> dict[str, Any]:
    """Draws times and noises for the whole batch: example i has its own, however the batch is cut."""
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    return {name: self.with_draws(part, jax.random.fold_in(key, i))
            for i, (name, part) in enumerate(batch.items())}

  def _loss(self, trained, frozen, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = tree.merge(trained, frozen)
    losses = dict(zip(batch, self._losses(params, list(batch.values()))))
    terms = {f"{name}_loss": value.mean() for name, value in losses.items()}
    # Sums of sub-batches: joined, they would have to be laid out anew over the devices.
    terms["loss"] = sum(v.sum() for v in losses.values()) / sum(v.size for v in losses.values())
    return terms["loss"], terms

  # ---- use

  def sample(
      self, params: Mapping[str, Any], positive: Mapping[str, jax.Array],
      negative: Mapping[str, jax.Array], start: jax.Array, *, steps: int, guidance: float,
      solver: str = "dpm"
  ) -> jax.Array:
    """Makes images.

    Args:
      params: of `model_params`.
      positive: tokens, token_mask and for edits cond_image.
      negative: tokens and token_mask of dropped prompts.
      start: float32[B, h, w, C], standard normal.
      steps: network evaluations.
      guidance: 1 follows the prompt alone.
      solver: see schedules.solver.

    Returns:
      uint8[B, R, R, 3].
    """
    return images.sample(
        self.model, params, positive, negative, positive.get("cond_image"), start,
        image_slot=self.image_slot, factor=self.factor, image_size=self.config.image_size,
        steps=steps, guidance=guidance, solver=solver)

  def latent_shape(self, batch_size: int) -> tuple[int, int, int, int]:
    """[B, h, w, C] of the latents of `batch_size` images."""
    h = self.config.image_size // self._side
    return batch_size, h, h, self.model.dims.dit.channels

  def preview(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Rows of the sample grids: {"input" of an edit, "target", "sample"}, uint8[B, R, R, 3]."""
    text, (count, length) = text_lib.Text(self.config.text.tokenizer), batch["tokens"].shape
    if "cond_image" in batch:
      dropped = text.editing(None, self.config.text.image_slots, length)
    else:
      dropped = text.generation(None, length)
    tokens, mask = (jnp.broadcast_to(x[None], (count, length)) for x in dropped)
    keys = [k for k in ("tokens", "token_mask", "cond_image") if k in batch]
    positive = {k: batch[k] for k in keys}
    made = self.sample(
        params, positive, {"tokens": tokens, "token_mask": mask},
        images.noise(0, 0, self.latent_shape(count)), **dict(self.config.sample))
    before = {"input": batch["cond_image"][:, 0]} if "cond_image" in batch else {}
    return before | {"target": batch["image"], "sample": made}

  def log_setup(self) -> None:
    """Says what a reader of the log could not guess."""
    logging.info("position embedding of the DiT: %s; factor of the latents: %g; condition: %s",
                 "added" if self.preset.dit.positions else "none", self.factor,
                 self.config.generate.condition)
