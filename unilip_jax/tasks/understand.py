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

from unilip_jax.common import tree
from unilip_jax.data import batch as batch_lib
from unilip_jax.models import presets, unilip
from unilip_jax.sampling import text as text_sampling
from unilip_jax.tasks import base, unilip_task
from unilip_jax.weights import dims as dims_lib

# A token of a conversation with n tokens to say counts n^-p (InternVL2.5, arXiv 2412.05271).
REDUCTIONS = {"token": 0.0, "sample": 1.0, "square": 0.5}


class Understand(unilip_task.UnilipTask, base.AnswersQuestions):
  """Networks, loss and answers of an understanding config."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; no array is made.

    Raises:
      ValueError: for settings that exclude each other, or an unknown loss.reduction.
    """
    super().__init__(config)
    if config.loss.reduction not in REDUCTIONS:
      raise ValueError(
          f"loss.reduction={config.loss.reduction!r}; choose one of {', '.join(REDUCTIONS)}")

  # ---- state

  def model_spec(self) -> dict[str, Any]:
    """model.json of a run: what is needed to read its weights."""
    parts = dims_lib.split_tokenizer(self.preset.tokenizer)
    parts["llm"] = presets.to_json(self.preset.llm)
    return {"format": 1, "modules": {name: parts[name] for name in unilip.UNDERSTANDING}}

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what a step takes."""
    return batch_lib.device_part(batch_lib.understand_spec(
        batch_size, self.config.image_size, self.config.text.chat_length))

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Random weights of the three modules, float32."""
    keys = jax.random.split(key)
    size = self.preset.tokenizer.vit.pixels_per_token
    modules = dict(self.model.tokenizer.init(
        keys[0], jnp.zeros((1, size, size, 3)), method="features")["params"])
    modules["llm"] = self.model.llm.init(
        keys[1], jnp.zeros((1, 1), jnp.int32), method="everything")["params"]
    return modules

  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Loaded modules as they are."""
    return dict(modules)

  def required_modules(self) -> dict[str, str]:
    """Modules that must not stay random; at tiny size all may."""
    return {} if self.config.size == "tiny" else dict.fromkeys(unilip.UNDERSTANDING, "init_from")

  # ---- the step

  def hidden(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> jax.Array:
    """The LLM's final states of a batch of conversations, [B, L, D]."""
    features = self.model.pixel_features(params, batch["cond_image"])
    return self.model.hidden(
        params, batch["tokens"], batch["token_mask"], self.image_slot, features)[0]

  def prepare(self, state, batch) -> dict[str, Any]:
    """Adds what each token counts in loss and accuracy: their sums over the batch are B.

    Returns:
      the entries of `batch`, and loss_weight and said_weight: float32[B, L-1].
    """
    del state
    said = batch["answer_mask"][:, 1:].astype(jnp.float32)
    spoken = jnp.maximum(said.sum(1, keepdims=True), 1.0)
    weights = said * spoken**-REDUCTIONS[self.config.loss.reduction]
    return dict(batch) | {
        "loss_weight": weights * (len(said) / jnp.maximum(weights.sum(), 1e-6)),
        "said_weight": said * (len(said) / jnp.maximum(said.sum(), 1.0))}

  def _loss(self, trained, frozen, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = tree.merge(trained, frozen)
    # Position i predicts token i + 1: the last one predicts nothing.
    hidden = self.hidden(params, batch)[:, :-1]
    targets = batch["tokens"][:, 1:]
    logits = self.model.llm.apply({"params": params["llm"]}, hidden, method="logits")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = (logits.argmax(-1) == targets).astype(jnp.float32)
    loss = (losses * batch["loss_weight"]).sum(1).mean()
    accuracy = (right * batch["said_weight"]).sum(1).mean()
    return loss, {"loss": loss, "token_accuracy": accuracy}

  # ---- use

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
    features = self.model.pixel_features(params, batch["cond_image"])
    logits, cache = self.model.answer_prefill(
        params, batch["tokens"], batch["token_mask"], self.image_slot, features)
    return text_sampling.decode(
        lambda tokens, valid, cache: self.model.answer_step(params, tokens, valid, cache),
        logits, cache, max_new_tokens=max_new_tokens, stop=stop, seed=0)

  def make_preview(self, mesh: jax.sharding.Mesh) -> base.Preview:
    """No rows: answers are not images."""
    del mesh
    return lambda params, batch: {}

  def log_settings(self) -> None:
    """Says what a reader of the log could not guess."""
    logging.info("the loss counts answers and their end only")
