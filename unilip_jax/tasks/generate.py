"""The generation stages: train queries, connector and DiT on prompts and edits (UniLIP section 3.2).

The frozen causal LLM runs over the prompts without a backward pass. Its keys and values enter the pass
over the queries, whose gradients equal those of a full forward pass. gen1, gen2 and gen3 differ in their
configs.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import numpy as np

from unilip_jax.data import text as text_lib
from unilip_jax.models import connector, presets, unilip
from unilip_jax.sampling import sampler
from unilip_jax.tasks import base, flow_matching


class Generate(flow_matching.FlowMatching, base.GeneratesImages):
  """Defines networks, dual condition and sampling of a generation config."""

  # ---- weights

  def model_spec(self) -> dict[str, Any]:
    """Returns the model.json of a run, which describes its weights without the config."""
    dims = self.model.dims
    return {
        "format": 1,
        "modules": {name: presets.to_json(getattr(dims, name))
                    for name in ("tokenizer", "llm", "connector", "dit")},
        "generate": self.config.generate.to_dict() | {"factor": self.latent_scale}}

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Samples float32 weights of every network of this config, by module name."""
    return self.model.init(key) | self.init_encoder(key)

  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a connector with the weights of the LLM's last layers, if none was loaded."""
    modules = dict(modules)
    if "llm" in modules and "connector" not in modules:
      modules["connector"] = connector.from_llm(modules["llm"], self.model.dims.connector.depth)
    return modules

  def required_modules(self) -> dict[str, str]:
    """Returns {module that must not start from random weights: config field that names its weights}.

    At tiny size every module may start from random weights.
    """
    if self.config.size == "tiny":
      return {}
    # gen1 does not use latent head and decoder, but saves them for gen2.
    target = ("encoder",) if self.to_dcae else ()
    return dict.fromkeys(
        ("vision_tower", "mlp1", "llm", "dit", "latent_head", "decoder", *target), "init_from")

  # ---- the step

  def condition(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Computes (context, mask) of a sub-batch's prompts.

    Gradients reach queries, connector and projector; and through the prompt's states the modules that
    compute them, if a part of those trains.
    """
    states, cache = self.model.prompt(
        params, batch["tokens"], batch["token_mask"], self.image_slot,
        self.model.pixel_features(params, batch.get("cond_image")))
    if not self._trains_prompt:
      states, cache = jax.lax.stop_gradient((states, cache))
    return self.model.context(params, states, cache)

  @functools.cached_property
  def _trains_prompt(self) -> bool:
    """Whether a parameter trains that the states of prompts depend on."""
    return any(c.train and p.split("/")[0] in unilip.UNDERSTANDING for p, c in self.columns.items())

  # ---- use

  def make_sampler(self, batch_size: int, mesh: jax.sharding.Mesh) -> sampler.Sampler:
    """Makes the sampler of images with `model_params`, with prompts padded as in training."""
    text = self.config.text
    return sampler.Sampler(
        self.model, text_lib.Text(text.tokenizer), image_size=self.config.image_size,
        latent_scale=self.latent_scale, batch_size=batch_size, mesh=mesh,
        lengths={"t2i": text.t2i_length, "edit": text.edit_length})

  def make_preview(self, mesh: jax.sharding.Mesh) -> base.Preview:
    """Makes the rows of the sample grids: "input" of an edit, "target", "sample"."""
    make_images = self.make_sampler(self.config.eval.batch_size, mesh)
    options = sampler.Options(**self.config.sample)

    def preview(params: base.Params, batch: base.Batch) -> dict[str, np.ndarray]:
      sampled = np.stack(make_images.from_tokens(params, batch, options))
      before = {"input": batch["cond_image"][:, 0]} if "cond_image" in batch else {}
      return before | {"target": batch["image"], "sample": sampled}

    return preview
