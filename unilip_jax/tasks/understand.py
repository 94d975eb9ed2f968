"""Understanding: next-token loss on the answers of conversations about images (InternVL's training).

Makes the tiny stand-in of InternVL3 from random weights (configs/tiny_mllm.py) and fine-tunes a real
one; what trains is the config's table.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import optax

from unilip_jax import batch as batch_lib
from unilip_jax import presets, rules, tree
from unilip_jax import state as state_lib
from unilip_jax.data import text as text_lib
from unilip_jax.models import unilip
from unilip_jax.ops import image as image_ops
from unilip_jax.sampling import text as text_sampling
from unilip_jax.tasks import update

MODULES = ("vision_tower", "mlp1", "llm")


class Understand:
  """Networks, initial state and train step of an understanding config."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; no array is made."""
    self.config = config
    self.preset = presets.get(config.size)
    self.model = unilip.Unilip(
        self.preset.unilip, jnp.dtype(config.dtype), remat_vit=config.remat.vit,
        remat_llm=config.remat.llm)
    slots = (config.image_size // (2 * self.preset.tokenizer.vit.patch)) ** 2
    if slots != config.text.image_slots:
      raise ValueError(f"image_size={config.image_size} gives {slots} tokens an image; "
                       "set text.image_slots to it")
    abstract = jax.eval_shape(self.init_modules, jax.random.key(0))
    self.columns = rules.resolve(abstract, config.param_rules, config.optimizer.no_decay)
    self._optimizer = update.make_adamw(config, self.columns, config.optimizer.weight_decay)
    self._image_slot: int | None = None

  @property
  def image_slot(self) -> int:
    """Id of the token that holds a place for image features."""
    if self._image_slot is None:
      self._image_slot = text_lib.Text(self.config.text.tokenizer).image_slot
    return self._image_slot

  # ---- state

  def dims(self) -> dict[str, Any]:
    """model.json of a run: what is needed to read its weights."""
    d = self.preset.tokenizer
    return {"format": 1, "modules": {
        "vision_tower": presets.to_json(d.vit),
        "mlp1": {"in_width": 4 * d.vit.width, "width": d.llm_width},
        "llm": presets.to_json(self.preset.llm)}}

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what a step takes."""
    return batch_lib.device_part(batch_lib.understand_spec(
        batch_size, self.config.image_size, self.config.text.chat_length))

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Random weights of the three modules, float32."""
    keys = jax.random.split(key)
    size = 2 * self.preset.tokenizer.vit.patch
    modules = dict(self.model.tokenizer.init(
        keys[0], jnp.zeros((1, size, size, 3)), method="features")["params"])
    modules["llm"] = self.model.llm.init(
        keys[1], jnp.zeros((1, 1), jnp.int32), method="everything")["params"]
    return modules

  def adopt(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Loaded modules as they are."""
    return dict(modules)

  def required_modules(self) -> dict[str, str]:
    """Modules that must not stay random; at tiny size all may."""
    return {} if self.config.size == "tiny" else dict.fromkeys(MODULES, "init_from")

  def make_state(self, modules: Mapping[str, Any], seed: jax.Array) -> state_lib.TrainState:
    """Splits modules into what trains and what is frozen, and adds the optimizer's zeros."""
    params, frozen = tree.split(modules, lambda path: self.columns[path].train)
    frozen = tree.map_with_path(lambda path, x: x.astype(self.columns[path].dtype), frozen)
    return state_lib.TrainState(
        step=jnp.zeros((), jnp.int32), seed=jnp.asarray(seed, jnp.uint32), params=params,
        opt_state=self._optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if self.config.ema_decay > 0 else {},
        gan={}, frozen=frozen)

  def model_params(self, state: state_lib.TrainState) -> dict[str, Any]:
    """All weights as evaluation uses them: the average where one is kept."""
    return tree.merge(state.ema or state.params, state.frozen)

  # ---- the step

  def hidden(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> jax.Array:
    """The LLM's final states of a batch of conversations, [B, L, D]."""
    features = self.model.features(
        params, image_ops.imagenet_from_unit(image_ops.unit_from_pixels(batch["cond_image"])))
    return self.model.hidden(
        params, batch["tokens"], batch["token_mask"], self.image_slot, features)[0]

  def _loss(self, trained, state, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = tree.merge(trained, state.frozen)
    # Position i predicts token i + 1: the last one predicts nothing.
    hidden = self.hidden(params, batch)[:, :-1]
    targets, said = batch["tokens"][:, 1:], batch["answer_mask"][:, 1:]
    logits = self.model.llm.apply({"params": params["llm"]}, hidden, method="logits")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    weights = said.astype(jnp.float32)
    count = jnp.maximum(weights.sum(), 1.0)
    right = (logits.argmax(-1) == targets).astype(jnp.float32)
    loss = (losses * weights).sum() / count
    return loss, {"loss": loss, "token_accuracy": (right * weights).sum() / count}

  def train_step(
      self, state: state_lib.TrainState, batch: Mapping[str, jax.Array]
  ) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
    """One update; see Generate.train_step."""
    grads, metrics = jax.grad(self._loss, has_aux=True)(state.params, state, batch)
    fields, more = update.generator(self.config, self._optimizer, state, grads)
    return update.keep_if_not_finite(state.replace(**fields), state, metrics | more)

  # ---- use

  def model_shapes(self) -> dict[str, Any]:
    """Shapes of the modules that evaluation needs."""
    return jax.eval_shape(self.init_modules, jax.random.key(0))

  def answer(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], *, max_new_tokens: int,
      stop: int
  ) -> tuple[jax.Array, jax.Array]:
    """Greedy answers.

    Args:
      params: of `model_params`.
      batch: cond_image, tokens and token_mask; tokens end where the answer begins.
      max_new_tokens: most tokens of an answer.
      stop: id that ends it.

    Returns:
      (int32[B, max_new_tokens], int32[B] tokens before the end), see sampling.text.decode.
    """
    features = self.model.features(
        params, image_ops.imagenet_from_unit(image_ops.unit_from_pixels(batch["cond_image"])))
    logits, cache = self.model.answer_prefill(
        params, batch["tokens"], batch["token_mask"], self.image_slot, features)
    return text_sampling.decode(
        lambda tokens, valid, cache: self.model.answer_step(params, tokens, valid, cache),
        logits, cache, max_new_tokens=max_new_tokens, stop=stop, seed=0)

  def log_setup(self) -> None:
    """Says what a reader of the log could not guess."""
    logging.info("the loss counts answers and their end only")
