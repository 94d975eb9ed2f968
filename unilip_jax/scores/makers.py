"""Makes images and answers of a model: from a checkpoint, or with a task's weights in training."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unilip_jax.infer import chat as chat_lib
from unilip_jax.infer import loading
from unilip_jax.models import quantization, unilip
from unilip_jax.ops import seeds
from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.weights import fingerprints

_STEPS = 1  # folded into the key of the noise of steps, which is not the first noise


@dataclasses.dataclass(frozen=True)
class Batch:
  """Holds the inputs of images that are sampled together.

  Attributes:
    prompts: of each image.
    inputs: uint8[R, R, 3] of each image to edit; None to generate.
    latents: float32[n, h, w, C], the first noise.
    fresh: float32[n, steps, h, w, C], the noise of each step of a network that was distilled by
      consistency; None for any other.
  """

  prompts: Sequence[str]
  inputs: Sequence[np.ndarray] | None
  latents: np.ndarray
  fresh: np.ndarray | None = None


class Maker(Protocol):
  """Makes images from prompts, noise and images to edit.

  Attributes:
    image_size: pixels per side of the model's images.
    latent_shape: (h, w, C) of the noise of an image.
    batch_size: images that run at once.
    few_step: how the network was distilled to a few steps, see sampling/few_steps.py; "" if it was not.
  """

  image_size: int
  latent_shape: tuple[int, int, int]
  batch_size: int
  few_step: str

  def prompt_length(self, prompt: str, *, editing: bool) -> int:
    """Returns a number; only prompts of equal numbers share a batch."""

  def images(self, batch: Batch, options: sampler.Options) -> list[np.ndarray]:
    """Returns uint8[R, R, 3] of each image of at most `batch_size`."""


class Answerer(Protocol):
  """Answers questions about images.

  Attributes:
    image_size: pixels per side of a tile.
    batch_size: answers that run at once.
  """

  image_size: int
  batch_size: int

  def answers(
      self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int,
      max_tiles: int) -> list[str]:
    """Answers questions greedily, each about its RGB images: none, one or several."""


class CheckpointMaker:
  """Makes images and answers with a checkpoint on all devices of this process; see Maker.

  Attributes:
    fingerprint: of the weights, as they were read.
  """

  def __init__(self, path: str, dtype: str, batch_size: int, *, int8: bool = False):
    """Reads a checkpoint onto the devices of this process.

    Args:
      path: as for `UniLIP.load`.
      dtype: "bfloat16" | "float32", of the computation and of the weights.
      batch_size: images or answers at once, over these devices; a multiple of their number.
      int8: keep the weights of large matrix multiplications in int8.

    Raises:
      FileNotFoundError, ValueError: see `UniLIP.load`.
    """
    self._mesh = mesh_lib.make_mesh(devices=jax.local_devices())
    mesh_lib.check_batch_size(batch_size, self._mesh, "--batch_size")
    self._loaded = loaded = loading.read(path, dtype)
    if loaded.dims is None:
      raise ValueError(f"{path} is a tokenizer alone: it can neither generate nor answer")
    self.fingerprint = fingerprints.fingerprint(loaded.params)
    params = jax.device_put(dict(loaded.params), mesh_lib.replicated(self._mesh))
    self._params = quantization.quantize(params) if int8 else params
    self.batch_size, self.image_size = batch_size, loaded.tokenizer_dims.vit.image_size
    self.few_step = loaded.dims.few_step
    self._model = unilip.Unilip(loaded.dims, jnp.dtype(dtype), loaded.condition)

  @functools.cached_property
  def _sampler(self) -> sampler.Sampler:
    if self._loaded.dims.dit is None:
      raise ValueError("this checkpoint has no DiT: it answers questions and generates no images")
    return sampler.Sampler(
        self._model, self._loaded.text, image_size=self.image_size, batch_size=self.batch_size,
        latent_scale=self._loaded.dims.factor, mesh=self._mesh)

  @functools.cached_property
  def _chat(self) -> chat_lib.Chat:
    return chat_lib.Chat(self._model, self._loaded.text, image_size=self.image_size,
                         batch_size=self.batch_size, mesh=self._mesh)

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    return self._sampler.latent_shape

  def prompt_length(self, prompt: str, *, editing: bool) -> int:
    return self._sampler.prompt_length(prompt, editing=editing)

  def images(self, batch: Batch, options: sampler.Options) -> list[np.ndarray]:
    return _images(self._sampler, self._params, batch, options)

  def answers(
      self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int,
      max_tiles: int, temperature: float = 0.0, top_p: float = 1.0) -> list[str]:
    """Answers questions greedily unless a temperature is given; see Answerer."""
    return _answers(
        self._chat, self._params, images, questions, max_tiles, self._loaded.system,
        text_sampling.Options(max_new_tokens, temperature, top_p))


class TaskMaker:
  """Makes images with the weights of a task, on its mesh; every process makes all images; see Maker."""

  def __init__(self, images: sampler.Sampler, params: Any, batch_size: int):
    """Keeps what it needs; compiles nothing.

    Args:
      images: from GeneratesImages.make_sampler, whose prompts have fixed lengths.
      params: of the model.
      batch_size: of the sampler.
    """
    self._sampler, self._params, self.batch_size = images, params, batch_size
    self.image_size, self.latent_shape = images.image_size, images.latent_shape
    self.few_step = images.few_step

  def prompt_length(self, prompt: str, *, editing: bool) -> int:
    return self._sampler.prompt_length(prompt, editing=editing)

  def images(self, batch: Batch, options: sampler.Options) -> list[np.ndarray]:
    return _images(self._sampler, self._params, batch, options)


class TaskAnswerer:
  """Answers with the weights of a task, on its mesh; every process computes all answers; see Answerer."""

  def __init__(self, chat: chat_lib.Chat, params: Any, *, image_size: int, batch_size: int, system: str):
    """Keeps what it needs; compiles nothing.

    Args:
      chat: on the task's mesh.
      params: of the modules of chat.
      image_size, batch_size: of `chat`.
      system: message.
    """
    self._chat, self._params, self._system = chat, params, system
    self.image_size, self.batch_size = image_size, batch_size

  def answers(
      self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int,
      max_tiles: int) -> list[str]:
    return _answers(self._chat, self._params, images, questions, max_tiles, self._system,
                    text_sampling.Options(max_new_tokens))


def _answers(
    chat: chat_lib.Chat, params: Any, images: Sequence[Sequence[Image.Image]], questions: Sequence[str],
    max_tiles: int, system: str, options: text_sampling.Options) -> list[str]:
  arrays = [[np.asarray(image) for image in each] for each in images]
  return chat.answer(params, arrays, [[q] for q in questions], options, seed=0, system=system,
                     max_tiles=max_tiles)


def _images(
    images: sampler.Sampler, params: Any, batch: Batch, options: sampler.Options) -> list[np.ndarray]:
  noise_of = {"latents": batch.latents} | ({} if batch.fresh is None else {"fresh": batch.fresh})
  if batch.inputs is None:
    return images.generate(params, batch.prompts, options, **noise_of)
  return images.edit(params, batch.inputs, batch.prompts, options, **noise_of)


@functools.partial(jax.jit, static_argnames=("shape", "steps"))
def noise(
    seed: np.ndarray, items: jax.Array, samples: jax.Array, *, shape: tuple[int, ...], steps: int = 0
) -> jax.Array:
  """Samples the noise of images; that of sample k of item i depends on (seed, i, k) alone.

  Args:
    seed: words of the seed of the benchmark's images (ops/seeds.py).
    items: int32[n], i of each image.
    samples: int32[n], k of each image.
    shape: (h, w, C).
    steps: 0 samples the first noise; otherwise the number of steps, each with noise of its own.

  Returns:
    float32[n, h, w, C], or with steps float32[n, steps, h, w, C], standard normal.
  """
  key = seeds.key(seed)
  keys = jax.vmap(lambda i, k: jax.random.fold_in(jax.random.fold_in(key, i), k))(items, samples)
  if steps:
    keys = jax.vmap(lambda k: jax.random.fold_in(k, _STEPS))(keys)
    shape = (steps, *shape)
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
