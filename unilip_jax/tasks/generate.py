"""The generation stages: queries, connector and DiT learn to make images from prompts and edits.

UniLIP section 3.2. The frozen causal LLM runs over the prompts without a backward pass; its keys and values
enter the pass over the queries, whose gradients equal those of a full forward pass. gen1, gen2 and gen3
differ in their configs.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.data import text as text_lib
from unilip_jax.models import connector, presets
from unilip_jax.sampling import images
from unilip_jax.tasks import base, flow_matching


class Generate(flow_matching.FlowMatching, base.GeneratesImages):
  """Networks, dual condition and sampling of a generation config."""

  # ---- weights

  def model_spec(self) -> dict[str, Any]:
    """model.json of a run: what is needed to read its weights."""
    dims = self.model.dims
    return {
        "format": 1,
        "modules": {name: presets.to_json(getattr(dims, name))
                    for name in ("tokenizer", "llm", "connector", "dit")},
        "generate": self.config.generate.to_dict() | {"factor": self.latent_scale}}

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Random weights of every network this config uses, by module name, float32."""
    return self.model.init(key) | self.init_encoder(key)

  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a connector that starts as the LLM's last layers, if none was loaded."""
    modules = dict(modules)
    if "llm" in modules and "connector" not in modules:
      modules["connector"] = connector.from_llm(modules["llm"], self.model.dims.connector.depth)
    return modules

  def required_modules(self) -> dict[str, str]:
    """Modules that must not start random, with the config field that names their weights.

    At tiny size everything may start from random weights.
    """
    if self.config.size == "tiny":
      return {}
    # gen1 does not use latent head and decoder, but passes them on to gen2.
    target = ("encoder",) if self.to_dcae else ()
    return dict.fromkeys(
        ("vision_tower", "mlp1", "llm", "dit", "latent_head", "decoder", *target), "init_from")

  # ---- the step

  def condition(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """(context, mask) of a sub-batch's prompts; gradients reach queries, connector and projector."""
    states, cache = jax.lax.stop_gradient(self.model.prompt(
        params, batch["tokens"], batch["token_mask"], self.image_slot,
        self.model.pixel_features(params, batch.get("cond_image"))))
    return self.model.context(params, states, cache)

  # ---- use

  def sample(
      self, params: Mapping[str, Any], positive: Mapping[str, jax.Array],
      negative: Mapping[str, jax.Array], start: jax.Array, *, steps: int, guidance: float,
      solver: str = "dpm"
  ) -> jax.Array:
    """Makes images: uint8[B, R, R, 3]; arguments as of base.GeneratesImages."""
    return images.sample(
        self.model, params, positive, negative, positive.get("cond_image"), start,
        image_slot=self.image_slot, factor=self.latent_scale, image_size=self.config.image_size,
        steps=steps, guidance=guidance, solver=solver)

  def preview(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Rows of the sample grids: {"input" of an edit, "target", "sample"}, uint8[B, R, R, 3]."""
    text, (count, length) = text_lib.Text(self.config.text.tokenizer), batch["tokens"].shape
    if "cond_image" in batch:
      dropped = text.editing(None, self.image_tokens, length)
    else:
      dropped = text.generation(None, length)
    tokens, mask = (jnp.broadcast_to(x[None], (count, length)) for x in dropped)
    keys = [k for k in ("tokens", "token_mask", "cond_image") if k in batch]
    positive = {k: batch[k] for k in keys}
    sampled = self.sample(
        params, positive, {"tokens": tokens, "token_mask": mask},
        images.noise(0, 0, self.latent_shape(count)), **dict(self.config.sample))
    before = {"input": batch["cond_image"][:, 0]} if "cond_image" in batch else {}
    return before | {"target": batch["image"], "sample": sampled}
