"""Understanding: next-token loss on the answers of conversations about images (InternVL's training).

Trains the small replacement for InternVL3 from random weights (configs/tiny_mllm.py), and fine-tunes
published weights. The config's table selects the trained parameters.
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

# Weight n^-p of an answer token, for n answer tokens in the conversation (InternVL2.5, arXiv 2412.05271).
REDUCTIONS = {"token": 0.0, "sample": 1.0, "square": 0.5}


class Understand(unilip_task.UnilipTask, base.AnswersQuestions):
  """Defines networks, loss and answers of an understanding config."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds the modules; allocates no array.

    Raises:
      ValueError: for settings that exclude each other, or an unknown loss.reduction.
    """
    super().__init__(config)
    if config.loss.reduction not in REDUCTIONS:
      raise ValueError(
          f"loss.reduction={config.loss.reduction!r}; choose one of {', '.join(REDUCTIONS)}")

  # ---- state

  def model_spec(self) -> dict[str, Any]:
    """Returns the model.json of a run, which describes its weights without the config."""
    parts = dims_lib.split_tokenizer(self.preset.tokenizer)
    parts["llm"] = presets.to_json(self.preset.llm)
    return {"format": 1, "modules": {name: parts[name] for name in unilip.UNDERSTANDING}}

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a step's batch."""
    return batch_lib.device_part(batch_lib.understand_spec(
        batch_size, self.config.image_size, self.config.text.chat_length))

  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Samples float32 weights of the three modules."""
    keys = jax.random.split(key)
    size = self.preset.tokenizer.vit.pixels_per_token
    modules = dict(self.model.tokenizer.init(
        keys[0], jnp.zeros((1, size, size, 3)), method="features")["params"])
    modules["llm"] = self.model.llm.init(
        keys[1], jnp.zeros((1, 1), jnp.int32), method="everything")["params"]
    return modules

  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the loaded modules unchanged."""
    return dict(modules)

  def required_modules(self) -> dict[str, str]:
    """Returns {module that must not start from random weights: config field that names its weights}.

    At tiny size every module may start from random weights.
    """
    return {} if self.config.size == "tiny" else dict.fromkeys(unilip.UNDERSTANDING, "init_from")

  # ---- the step

  def hidden(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> jax.Array:
    """Computes the LLM's final states of a batch of conversations, [B, L, D]."""
    features = self.model.pixel_features(params, batch["cond_image"])
    return self.model.hidden(
        params, batch["tokens"], batch["token_mask"], self.image_slot, features)[0]

  def prepare(self, state, batch) -> dict[str, Any]:
    """Adds the weight of each token in loss and accuracy; weights sum to B over the batch.

    Returns:
      the entries of `batch`, and loss_weight and accuracy_weight: float32[B, L-1].
    """
    del state
    mask = batch["answer_mask"][:, 1:].astype(jnp.float32)
    lengths = jnp.maximum(mask.sum(1, keepdims=True), 1.0)
    weights = mask * lengths**-REDUCTIONS[self.config.loss.reduction]
    return dict(batch) | {
        "loss_weight": weights * (len(mask) / jnp.maximum(weights.sum(), 1e-6)),
        "accuracy_weight": mask * (len(mask) / jnp.maximum(mask.sum(), 1.0))}

  def _loss(self, trained, frozen, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = tree.merge(trained, frozen)
    # Position i predicts token i + 1: the last position has no target.
    hidden = self.hidden(params, batch)[:, :-1]
    targets = batch["tokens"][:, 1:]
    logits = self.model.llm.apply({"params": params["llm"]}, hidden, method="logits")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    correct = (logits.argmax(-1) == targets).astype(jnp.float32)
    loss = (losses * batch["loss_weight"]).sum(1).mean()
    accuracy = (correct * batch["accuracy_weight"]).sum(1).mean()
    return loss, {"loss": loss, "token_accuracy": accuracy}

  # ---- use

  def answer(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], *, max_new_tokens: int,
      stop: int
  ) -> tuple[jax.Array, jax.Array]:
    """Answers questions greedily.

    Args:
      params: of `model_params`.
      batch: cond_image, tokens and token_mask; tokens end where the answer begins.
      max_new_tokens: most tokens of an answer.
      stop: id of the token that ends an answer.

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
    """Makes no rows: answers are not images."""
    del mesh
    return lambda params, batch: {}

  def log_settings(self) -> None:
    """Logs settings that are not in the config."""
    logging.info("the loss is over answers and their end tokens only")
