"""Pretrains the tiny DiT with a text encoder of clauses instead of an LLM (configs/tiny_sana.py).

SANA had Gemma, a text encoder that knew its language before the DiT started. gen1 then aligns the connector
with the DiT, which is frozen.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from unilip_jax.data import text as text_lib
from unilip_jax.models import presets
from unilip_jax.shapes import clauses, language
from unilip_jax.tasks import base, flow_matching


class PretrainDit(flow_matching.FlowMatching):
  """A DiT conditioned on clauses of words."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; no array is made.

    Raises:
      ValueError: for settings that need an LLM.
    """
    if config.data.edit_share or config.sample_every_steps:
      raise ValueError("task='shapes_clauses' reads text alone and samples no images: set "
                       "data.edit_share=0 and sample_every_steps=0")
    preset, text = presets.get(config.size), text_lib.Text(config.text.tokenizer)
    starts = tuple(text.encode(word)[0] for word in language.CLAUSE_STARTS)
    self._clauses = clauses.Clauses(preset.llm.rows, preset.dit.caption_width, starts,
                                    language.MAX_CLAUSES, jnp.dtype(config.dtype))
    super().__init__(config)

  def model_spec(self) -> dict[str, Any]:
    """model.json of a run: the DiT alone, which is what later stages take."""
    return {
        "format": 1, "modules": {"dit": presets.to_json(self.model.dims.dit)},
        "generate": self.config.generate.to_dict() | {"factor": self.latent_scale}}

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Random weights of DiT, text encoder and what makes the targets, float32."""
    modules = self.model.init(key)
    used = ("dit",) if self.to_dcae else ("dit", *self.target_modules)
    embedding = self._clauses.init(
        jax.random.fold_in(key, 2), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.bool_))["params"]
    return {name: modules[name] for name in used} | {"clauses": embedding} | self.init_encoder(key)

  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Returns loaded modules as they are."""
    return dict(modules)

  def required_modules(self) -> dict[str, str]:
    """Everything may start random."""
    return {}

  def condition(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """(context, mask) of a sub-batch's prompts."""
    return self._clauses.apply({"params": params["clauses"]}, batch["tokens"], batch["token_mask"])

  def make_preview(self, mesh: jax.sharding.Mesh) -> base.Preview:
    """No rows: without an LLM no images are sampled."""
    del mesh
    return lambda params, batch: {}
