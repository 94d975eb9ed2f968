"""Base of the understanding and generation stages: one model, one optimizer, one loss."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from unilip_jax.common import tree
from unilip_jax.data import text as text_lib
from unilip_jax.models import lora, presets, quantization, unilip
from unilip_jax.ops import seeds
from unilip_jax.optim import param_table, update
from unilip_jax.optim import state as state_lib
from unilip_jax.sharding import activations
from unilip_jax.tasks import base

_SEED = jax.ShapeDtypeStruct((), jnp.uint32)
_DROPOUT = 1000  # purpose of a step's randomness, apart from those of the sub-batches


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
        jax.eval_shape(self._with_adapters, self.module_shapes, _SEED), self._param_rules(),
        config.optimizer.no_decay)
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

  def _param_rules(self) -> param_table.Table:
    """Returns config.param_rules; with adapters, these train and all that has no row is frozen."""
    config = self.config
    if not config.lora.targets:
      return config.param_rules
    return (*lora.PARAM_RULES, *config.param_rules, ("", {"train": False, "dtype": config.lora.base_dtype}))

  def _with_adapters(self, modules: Mapping[str, Any], seed: jax.Array) -> dict[str, Any]:
    """Adds the adapters of config.lora, which change no output yet, where `modules` holds none."""
    base = lora.split(modules)[1]
    if not self.config.lora.targets or len(tree.flatten(base)) < len(tree.flatten(modules)):
      return dict(modules)
    return tree.merge(base, lora.init(base, self.config.lora, seed))

  @functools.cached_property
  def _model_shapes(self) -> dict[str, Any]:
    return self.model_params(self.state_shapes())

  def model_shapes(self) -> dict[str, Any]:
    """Returns the shapes of every module; evaluation needs all of them."""
    return self._model_shapes if self.config.lora.targets else self.module_shapes

  def make_state(self, modules: Mapping[str, Any], seed: jax.Array) -> state_lib.TrainState:
    """Splits modules into trained and frozen ones, and adds adapters and the optimizer's zeros."""
    modules = self._with_adapters(modules, seed)
    params, frozen = tree.split(modules, lambda path: self.columns[path].train)
    frozen = quantization.cast(frozen, lambda path: self.columns[path].dtype)
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
    frozen = update.gathered_frozen(self.config, state.frozen)
    loss = lambda trained, part: self._loss(trained, frozen, part)
    if self.config.lora.targets and self.config.lora.dropout:
      loss, batch = self._with_dropout(loss, batch, state)
    grads, metrics = update.gradients(self.config, loss, state.params, batch)
    fields, more = update.apply_gradients(self.config, self._optimizer, state, grads)
    return update.keep_if_not_finite(state.replace(**fields), state, metrics | more)

  def _with_dropout(self, loss, batch, state):
    """Returns (loss, batch) with the adapters' dropout, whose seed differs for every micro-batch."""
    rate, count = self.config.lora.dropout, self.config.batch_size
    key = jax.random.fold_in(jax.random.fold_in(seeds.key(state.seed), state.step), _DROPOUT)

    def dropped(trained, part):
      batch, words = part
      return loss(lora.with_dropout(trained, rate, jax.random.key(words[0])), batch)

    return dropped, (batch, jax.random.bits(key, (count,)))
