"""Base of the understanding and generation stages: one model, one optimizer, one loss."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from unilip_jax.common import tree
from unilip_jax.data import text as text_lib
from unilip_jax.models import presets, unilip
from unilip_jax.optim import param_table, update
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import activations
from unilip_jax.tasks import base


class UnilipTask(base.Task):
  """Minimises one loss over the parameters that the config's table trains.

  A stage adds `init_modules(key)` and `_loss(trained, frozen, batch) -> (loss, {metric: float32[]})`, means
  over the examples of a batch from `prepare`.

  Attributes:
    config: of the run.
    preset: dimensions.
    model: the networks (models/unilip.py).
    columns: {path: param_table.Columns}.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; allocates no array.

    Raises:
      ValueError: for settings that exclude each other.
    """
    update.check_grad_accum_steps(config)
    self.config = config
    self.preset = presets.get(config.size)
    self.model = unilip.Unilip(
        self.preset.unilip, jnp.dtype(config.dtype), config.generate.condition,
        remat_vit=config.remat.vit, remat_llm=config.remat.llm, remat_dit=config.remat.dit)
    self.columns = param_table.resolve(
        self.model_shapes(), config.param_rules, config.optimizer.no_decay)
    self._optimizer = update.make_adamw(config, self.columns, config.optimizer.weight_decay)
    self._image_slot: int | None = None

  @property
  def image_slot(self) -> int:
    """Id of the token whose embeddings image features replace."""
    if self._image_slot is None:
      self._image_slot = text_lib.Text(self.config.text.tokenizer).image_slot
    return self._image_slot

  @property
  def image_tokens(self) -> int:
    """Number of tokens of one image in a prompt."""
    return self.preset.tokenizer.image_tokens(self.config.image_size)

  def model_shapes(self) -> dict[str, Any]:
    """Returns the shapes of every module; evaluation needs all of them."""
    return self.module_shapes

  def make_state(self, modules: Mapping[str, Any], seed: jax.Array) -> state_lib.TrainState:
    """Splits modules into trained and frozen ones, and adds the optimizer's zeros."""
    params, frozen = tree.split(modules, lambda path: self.columns[path].train)
    frozen = tree.map_with_path(lambda path, x: x.astype(self.columns[path].dtype), frozen)
    return state_lib.TrainState(
        step=jnp.zeros((), jnp.int32), seed=jnp.asarray(seed, jnp.uint32), params=params,
        opt_state=self._optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if self.config.ema_decay > 0 else {},
        gan={}, frozen=frozen)

  def model_params(self, state: state_lib.TrainState) -> dict[str, Any]:
    """Returns the weights for evaluation and sampling: the EMA, or the parameters without one."""
    return tree.merge(state.ema or state.params, state.frozen)

  def prepare(self, state: state_lib.TrainState, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Adds entries that depend on the complete batch, which micro-batches lack: see update.gradients."""
    del state
    return dict(batch)

  def train_step(
      self, state: state_lib.TrainState, batch: Mapping[str, Any]
  ) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
    """Makes one update.

    Args:
      state: donated by the caller.
      batch: see `batch_spec`.

    Returns:
      (the next state, {metric: float32[]}), see update.keep_if_not_finite.
    """
    batch = jax.tree.map(lambda x: activations.constrain(x, "batch"), self.prepare(state, batch))
    grads, metrics = update.gradients(
        self.config, lambda trained, part: self._loss(trained, state.frozen, part), state.params, batch)
    fields, more = update.apply_gradients(self.config, self._optimizer, state, grads)
    return update.keep_if_not_finite(state.replace(**fields), state, metrics | more)
