"""The interface of tasks to the loop, evaluators, samples, plans and loading (example: docs/extend.md).

A task defines the networks, their first state and the train step. `Task` is the interface of every task.
Each further ability is an interface of its own, from which a task also derives: an evaluator checks
`isinstance(task, AnswersQuestions)`.
"""

import abc
from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import ml_collections
import numpy as np

from unilip_jax.models import presets
from unilip_jax.ops import program_store, seeds
from unilip_jax.optim import param_table
from unilip_jax.optim import state as state_lib
from unilip_jax.sampling import sampler
from unilip_jax.tasks import identity

Batch = Mapping[str, Any]
Params = Mapping[str, Any]
Preview = Callable[[Params, Batch], dict[str, np.ndarray]]


class Task(abc.ABC):
  """Defines networks, first state, train step and previews of a config.

  Attributes:
    config: of the run.
    preset: dimensions of the size.
    columns: {path: row of the parameter table} of the model's parameters.
  """

  config: ml_collections.ConfigDict
  preset: presets.Preset
  columns: Mapping[str, param_table.Columns]

  # ---- weights

  @abc.abstractmethod
  def init_modules(self, key: jax.Array) -> dict[str, Any]:
    """Samples the first weights of every network: {module: nested dict of float32 arrays}."""

  @functools.cached_property
  def module_shapes(self) -> dict[str, Any]:
    """`init_modules` as ShapeDtypeStructs; traced once, and not by later starts."""
    return program_store.value(
        "module_shapes", identity.of(type(self), self.config),
        lambda: jax.eval_shape(self.init_modules, jax.random.key(0)))

  @abc.abstractmethod
  def model_shapes(self) -> dict[str, Any]:
    """Returns the shapes of the modules that evaluation needs, a part of `module_shapes`."""

  @abc.abstractmethod
  def model_spec(self) -> dict[str, Any]:
    """Returns the model.json of a run, which describes its weights without the config."""

  @abc.abstractmethod
  def fill_missing_modules(self, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Adds modules that are computed from loaded ones, e.g. a connector from the LLM's last layers."""

  @abc.abstractmethod
  def required_modules(self) -> dict[str, str]:
    """Returns {module that must not start from random weights: config field that names its weights}."""

  # ---- state and step

  @abc.abstractmethod
  def make_state(self, modules: Mapping[str, Any], seed: jax.Array) -> state_lib.TrainState:
    """Makes the first state: trained weights, frozen weights and the optimizer's zeros."""

  def state_shapes(self) -> state_lib.TrainState:
    """Computes the first state as ShapeDtypeStructs without shardings."""
    return jax.eval_shape(
        self.make_state, self.module_shapes, seeds.words(self.config.seed, "config.seed"))

  @abc.abstractmethod
  def batch_spec(self, batch_size: int) -> dict[str, Any]:
    """Returns shapes and dtypes of a batch on the devices (data/batch.py)."""

  @abc.abstractmethod
  def train_step(
      self, state: state_lib.TrainState, batch: Batch
  ) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
    """Makes one update: a pure function that the caller jits, with `state` donated.

    Returns:
      (the next state, {metric: float32[]}); the metric `finite` is 0 if the old state was kept.
    """

  @abc.abstractmethod
  def model_params(self, state: state_lib.TrainState) -> dict[str, Any]:
    """Returns the weights for evaluation and sampling: the EMA, or the parameters without one."""

  # ---- use

  @abc.abstractmethod
  def make_preview(self, mesh: jax.sharding.Mesh) -> Preview:
    """Makes the function that the sample grids call.

    Returns:
      (params of `model_params`, batch on the host) -> rows of the grid, {label: uint8[B, R, R, 3]}.
    """

  @abc.abstractmethod
  def log_settings(self) -> None:
    """Logs settings that are not in the config."""


class ReconstructsImages(Task):
  """Extends tasks whose model encodes and decodes images.

  Attributes:
    model: a Flax module; called with images in [0, 1] it returns `reconstruction`.
    lpips: the LPIPS network of the size, for evaluation.
  """

  model: Any
  lpips: Any

  @abc.abstractmethod
  def reconstruct(self, params: Params, pixels: jax.Array) -> jax.Array:
    """Encodes and decodes: uint8[B, R, R, 3] -> uint8[B, R, R, 3]."""


class AnswersQuestions(Task):
  """Extends tasks whose model answers questions about images.

  Attributes:
    image_tokens: tokens of one image in a prompt.
  """

  image_tokens: int

  @abc.abstractmethod
  def answer(
      self, params: Params, batch: Batch, *, max_new_tokens: int, stop: int
  ) -> tuple[jax.Array, jax.Array]:
    """Answers questions greedily.

    Args:
      params: of `model_params`.
      batch: cond_image, tokens and token_mask; tokens end where the answer begins.
      max_new_tokens: longest answer.
      stop: id of the token that ends an answer.

    Returns:
      (int32[B, max_new_tokens], int32[B] tokens before the end).
    """


class MatchesFlow(Task):
  """Extends tasks that train a DiT by flow matching.

  Attributes:
    target_modules: modules that encode images as target latents.
    image_tokens: tokens of one image in a prompt.
  """

  target_modules: tuple[str, ...]
  image_tokens: int

  @abc.abstractmethod
  def encode(self, params: Params, pixels: jax.Array) -> jax.Array:
    """Computes unscaled target latents with `target_modules`: uint8[B, H, W, 3] -> dtype[B, h, w, C]."""

  @abc.abstractmethod
  def latent_shape(self, batch_size: int) -> tuple[int, int, int, int]:
    """Returns the shape [B, h, w, C] of the latents of `batch_size` images."""

  @abc.abstractmethod
  def losses(self, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
    """Computes float32[B], the flow-matching loss of each example of a sub-batch."""


class GeneratesImages(MatchesFlow):
  """Extends tasks whose model generates images from prompts, and edits images by instructions."""

  @abc.abstractmethod
  def make_sampler(self, batch_size: int, mesh: jax.sharding.Mesh) -> sampler.Sampler:
    """Makes the sampler of images with `model_params`, `batch_size` at a time."""


class LearnsFromRewards(GeneratesImages):
  """Extends tasks that train on images of their own, which rewards have scored (training/rollouts.py)."""

  @abc.abstractmethod
  def rollout_params(self, state: state_lib.TrainState) -> dict[str, Any]:
    """Returns the weights that sample rollouts: those of the old policy."""

  @abc.abstractmethod
  def rollout(
      self, params: Params, prompts: Batch, seed: jax.Array, first: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Samples K = reward.group_size images of each prompt; a pure function that the caller jits.

    Args:
      params: of `rollout_params`.
      prompts: n prompts of a sub-batch: tokens, token_mask and, for edits, cond_image.
      seed: words of the rollout's seed (ops/seeds.py).
      first: int32[], index of the first prompt in its rollout.

    Returns:
      (uint8[n, K, R, R, 3] images, entries of the sub-batch of an update, each with n rows).
    """

  @abc.abstractmethod
  def learning_signal(self, advantages: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the entry of an update's sub-batch from float64[n, K] advantages: {name: float32[n, K]}."""
