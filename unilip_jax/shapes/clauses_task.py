"""Pretrains the tiny DiT with the text encoder of clauses.py instead of an LLM (configs/tiny_sana.py).

The result takes the place of the pretrained SANA from which gen1 starts.
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
    """Builds the modules, without any array.

    Raises:
      ValueError: for settings that need an LLM.
    """
    if config.data.edit_share or config.sample_every_steps:
      raise ValueError("task='shapes_clauses' has no LLM, which edits and samples need: set "
                       "data.edit_share=0 and sample_every_steps=0")
    preset, text = presets.get(config.size), text_lib.Text(config.text.tokenizer)
    starts = tuple(text.encode(word)[0] for word in language.CLAUSE_STARTS)
    self._clauses = clauses.Clauses(preset.llm.rows, preset.dit.caption_width, starts,
                                    language.MAX_CLAUSES, jnp.dtype(config.dtype))
    super().__init__(config)

  def model_spec(self) -> dict[str, Any]:
    """model.json of a run: the DiT alone, which later stages start from."""
    return {
        "format": 1, "modules": {"dit": presets.to_json(self.model.dims.dit)},
        "generate": self.config.generate.to_dict() | {"factor": self.latent_scale}}

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Random float32 weights of the DiT, the text encoder and the encoder of target latents."""
    modules = self.model.init(key)
    used = ("dit",) if self.to_dcae else ("dit", *self.target_modules)
    embedding = self._clauses.init(
        jax.random.fold_in(key, 2), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.bool_))["params"]
    return {name: modules[name] for name in used} | {"clauses": embedding} | self.init_encoder(key)

  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the loaded modules unchanged."""
    return dict(modules)

  def required_modules(self) -> dict[str, str]:
    """Returns {}: every module may start random."""
    return {}

  def condition(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Encodes the prompts of a sub-batch: (dtype[B, clauses, width], bool[B, clauses])."""
    return self._clauses.apply({"params": params["clauses"]}, batch["tokens"], batch["token_mask"])

  def make_preview(self, mesh: jax.sharding.Mesh) -> base.Preview:
    """Returns a function without rows: without an LLM no images are sampled."""
    del mesh
    return lambda params, batch: {}
