"""Samples images from prompts: batched, sharded, and equal for a seed on every mesh.

Training samples, evaluation and `UniLIP` use the same Sampler. Sample i of a call depends on (seed,
first + i), its prompt and its image alone, not on its batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.common import arguments, rectangles
from unilip_jax.data import text as text_lib
from unilip_jax.models import unilip
from unilip_jax.ops import flow_schedules, programs, seeds
from unilip_jax.sampling import few_steps
from unilip_jax.sampling import images as image_sampling
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib

_LONGEST = 1024  # tokens of prompt and queries together (official)
_BUCKET = 32  # without a given length, prompts are padded to multiples of this

Row = tuple[np.ndarray, np.ndarray]  # (tokens int32[L], mask bool[L])


@dataclasses.dataclass(frozen=True)
class Options:
  """Holds the options of sampling an image.

  Attributes:
    steps: network evaluations, 1 to 1000.
    guidance: strength of the prompt, at least 0; 1 is without guidance, in half the time.
    solver: "dpm" | "euler", see flow_schedules.solver.
    guidance_interval: (low, high) noise levels, 0 to 1, between which guidance applies
      (images.Guidance).
    guidance_rescale: 0 to 1, how far the deviation of a guided velocity is that of the prompt's
      (images.Guidance).

  Raises:
    ValueError: for other values, with the choices.
  """

  steps: int = 20
  guidance: float = 4.5
  solver: str = "dpm"
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  guidance_rescale: float = 0.0

  def __post_init__(self):
    arguments.integer("steps", self.steps, 1, flow_schedules.TRAIN_STEPS)
    arguments.number("guidance", self.guidance, 0.0)
    arguments.choice("solver", self.solver, flow_schedules.SOLVERS)
    arguments.interval("guidance_interval", self.guidance_interval, 0.0, 1.0)
    arguments.number("guidance_rescale", self.guidance_rescale, 0.0, 1.0)

  @classmethod
  def of(cls, few_step: str, **given: Any) -> "Options":
    """Returns options with the defaults of a kind of network where `given` has None.

    Args:
      few_step: of the model's dimensions.
      **given: attributes.

    Raises:
      ValueError: for guidance other than 1 of a few-step network, or other values as above.
    """
    defaults = {"steps": few_steps.STEPS, "guidance": 1.0} if few_step else {}
    options = cls(**defaults | {name: value for name, value in given.items() if value is not None})
    options.check(few_step)
    return options

  def check(self, few_step: str) -> None:
    """Refuses guidance of a few-step network, which learned its teacher's."""
    if few_step and self.guidance != 1:
      raise ValueError(
          f"guidance={self.guidance:g}: this checkpoint was distilled to a few steps, with guidance "
          "inside of the network; leave guidance out")

  def traced(self) -> image_sampling.Guidance:
    """Returns what programs take as arrays; None, not a neutral value, where nothing is to be done."""
    return image_sampling.Guidance(
        np.float32(self.guidance),
        np.float32(self.guidance_rescale) if self.guidance_rescale else None,
        tuple(map(np.float32, self.guidance_interval))
        if tuple(self.guidance_interval) != (0.0, 1.0) else None)


class Sampler:
  """Samples images from prompts, and from images and instructions."""

  def __init__(
      self, model: unilip.Unilip, text: text_lib.Text, *, image_size: int, latent_scale: float,
      batch_size: int, mesh: jax.sharding.Mesh | None = None,
      lengths: Mapping[str, int] | None = None):
    """Compiles nothing yet; calls compile one program per image size, batch size, length and steps.

    Args:
      model: the networks.
      text: tokenizer and layouts of prompts.
      image_size: R, pixels per side of images unless a call names a size.
      latent_scale: the DiT was trained on latents × latent_scale.
      batch_size: samples that run at once, over all devices.
      mesh: the devices; None is the default device.
      lengths: {"t2i": tokens, "edit": tokens} of prompts, to which longer prompts are cut; None pads
        prompts to multiples of 32 and refuses those that do not fit into the model.
    """
    self._model, self._text, self._mesh = model, text, mesh
    self._batch_size, self._lengths = batch_size, lengths
    self.image_size, self.few_step = image_size, model.dims.few_step
    self.latent_shape = self.latents_of((image_size, image_size))
    self.program = _program(model, text.image_slot, latent_scale)
    program, sharding = self.program, None
    if mesh is not None:
      program, sharding = activations.under(mesh, program), mesh_lib.replicated(mesh)
    self._run = programs.Program(
        program, static_argnames=("size", "steps", "solver"), out_shardings=sharding)
    self._noise = programs.Program(image_sampling.noise, static_argnames=("shape",))
    self._fresh = programs.Program(image_sampling.noises, static_argnames=("shape", "steps"))

  def latents_of(self, size: rectangles.Size) -> tuple[int, int, int]:
    """Returns the shape (h, w, C) of the latents of an image of (height, width) pixels."""
    h, w = (self._model.dims.tokenizer.tokens_per_side(n) for n in size)
    return h, w, self._model.dims.dit.channels

  def generate(
      self, params: Any, prompts: Sequence[str], options: Options, *, seed: int = 0,
      first: int | np.ndarray = 0, latents: np.ndarray | None = None, fresh: np.ndarray | None = None,
      size: rectangles.Size | None = None
  ) -> list[np.ndarray]:
    """Samples one image per prompt.

    Args:
      params: of every module, on the devices.
      prompts: at least one.
      options: of sampling.
      seed: of the call, any integer of 64 bits.
      first: index of the first sample in its call, or int[n], that of each.
      latents: float32[n, h, w, C], the first noise; None samples it.
      fresh: float32[n, steps, h, w, C], the noise of each step of a network that was distilled by
        consistency; None samples it.
      size: (H, W) of the images, multiples of the side of a token; None is the square.

    Returns:
      n arrays uint8[H, W, 3].

    Raises:
      ValueError: for a prompt that is empty or does not fit; for another seed than an integer of 64 bits;
        for latents of another shape, or with values that are not finite.
    """
    length = self._length("t2i", self._text.generation, prompts)
    rows = [self._text.generation(prompt, length) for prompt in prompts]
    return self._sample(params, rows, self._text.generation(None, length), None, options, seed, first,
                        latents, size, fresh)

  def edit(
      self, params: Any, images: Sequence[np.ndarray], instructions: Sequence[str], options: Options, *,
      seed: int = 0, first: int | np.ndarray = 0, latents: np.ndarray | None = None,
      fresh: np.ndarray | None = None
  ) -> list[np.ndarray]:
    """Samples one image per image uint8[H, W, 3] and instruction, of the same size.

    Images of one size run in batches; other arguments as of `generate`.

    Raises:
      ValueError: as of `generate`; for latents of images of several sizes.
    """
    self._text.check(instructions)
    indices = _indices(first, len(images))
    groups: dict[rectangles.Size, list[int]] = {}
    for i, image in enumerate(images):
      groups.setdefault(image.shape[:2], []).append(i)
    if (latents is not None or fresh is not None) and len(groups) > 1:
      raise ValueError(f"latents of images of {len(groups)} sizes: edit those of each size by themselves")
    sampled: list[Any] = [None] * len(images)
    for size, at in groups.items():
      layout = self._edit_layout(size)
      length = self._length("edit", layout, [instructions[i] for i in at])
      rows = [layout(instructions[i], length) for i in at]
      results = self._sample(params, rows, layout(None, length), [images[i][None] for i in at], options,
                             seed, indices[at], latents, size, fresh)
      for i, result in zip(at, results):
        sampled[i] = result
    return sampled

  def prompt_length(
      self, prompt: str, *, editing: bool, size: rectangles.Size | None = None) -> int:
    """Returns the tokens to which a prompt is padded when it is sampled alone; `size` as of `generate`.

    A batch of prompts of equal lengths is padded no further: a sample is the same in each such batch.

    Raises:
      ValueError: for a prompt that does not fit.
    """
    if editing:
      return self._length("edit", self._edit_layout(size or self._square), [prompt])
    return self._length("t2i", self._text.generation, [prompt])

  @property
  def _square(self) -> rectangles.Size:
    return self.image_size, self.image_size

  def _edit_layout(self, size: rectangles.Size) -> Callable[[str | None, int], Row]:
    """Returns the layout of instructions about an image of this size."""
    tokens = self._model.dims.tokenizer.image_tokens(size)
    return lambda instruction, length: self._text.editing(instruction, tokens, length)

  def from_tokens(
      self, params: Any, batch: Mapping[str, np.ndarray], options: Options, *, seed: int = 0
  ) -> list[np.ndarray]:
    """Samples one image per prompt of a batch from the data pipeline.

    Args:
      params: of every module, on the devices.
      batch: tokens int32[B, L], token_mask bool[B, L], and for edits cond_image uint8[B, 1, H, W, 3].
      options: of sampling.
      seed: of the call.
    """
    length, images = batch["tokens"].shape[1], batch.get("cond_image")
    size = None if images is None else images.shape[2:4]
    dropped = (self._text.generation(None, length) if size is None
               else self._edit_layout(size)(None, length))
    rows = list(zip(batch["tokens"], batch["token_mask"]))
    return self._sample(params, rows, dropped, None if images is None else list(images), options, seed, 0,
                        None, size)

  def _sample(
      self, params: Any, rows: Sequence[Row], dropped: Row, images: Sequence[np.ndarray] | None,
      options: Options, seed: int, first: int | np.ndarray, latents: np.ndarray | None,
      size: rectangles.Size | None, fresh: np.ndarray | None = None) -> list[np.ndarray]:
    size = self._square if size is None else rectangles.both_sides(size)
    shape = self.latents_of(size)
    latents = _first_noise(latents, (len(rows), *shape))
    indices = _indices(first, len(rows))
    words, few_step = seeds.words(seed), self.few_step
    options.check(few_step)
    sampled: list[np.ndarray] = []
    at_once = min(self._batch_size, len(rows)) if self._mesh is None else self._batch_size
    for part, count in padded_batches(range(len(rows)), at_once):
      positive = text_lib.stack_prompts([rows[i] for i in part])
      # Without images all examples share one dropped prompt; on several devices each has its own row.
      shared = images is None and (self._mesh is None or self._mesh.size == 1)
      negative = None if options.guidance == 1 else text_lib.stack_prompts(
          [dropped] * (1 if shared else len(part)))
      cond = None if images is None else np.stack([images[i] for i in part])
      noise = (self._noise(words, indices[part], shape=(len(part), *shape))
               if latents is None else latents[np.asarray(part)])
      each = None
      if few_step == "consistency":
        each = (self._fresh(words, indices[part], shape=noise.shape, steps=options.steps)
                if fresh is None else fresh[np.asarray(part)])
      batch = self._put((positive, negative, cond, noise, each))
      out = self._run(params, *batch, options.traced(), size=size, steps=options.steps,
                      solver=options.solver)
      sampled += list(np.asarray(out)[:count])
    return sampled

  def _put(self, batch: Any) -> Any:
    """Moves arrays of the host or the default device onto the mesh."""
    if self._mesh is None:
      return batch
    batch = jax.device_get(batch)
    split, replicated = mesh_lib.batch_sharding(self._mesh), mesh_lib.replicated(self._mesh)
    return mesh_lib.put(batch, jax.tree.map(
        lambda x: replicated if x.shape[0] % self._mesh.size else split, batch))

  def _length(
      self, kind: str, layout: Callable[[str | None, int], Row], prompts: Sequence[str]) -> int:
    """Checks the prompts; returns the number of tokens to which all are padded."""
    self._text.check(prompts)
    if self._lengths is not None:
      return self._lengths[kind]
    limit = _LONGEST - self._model.dims.connector.queries
    for i, prompt in enumerate(prompts):
      count = int(layout(prompt, 64 * _LONGEST)[1].sum())
      if count > limit:
        raise ValueError(f"prompt {i} has {count} tokens with its chat template, at most {limit} fit; "
                         "shorten it" + ", or choose a smaller image" * (kind == "edit"))
    longest = max(int(layout(p, _LONGEST)[1].sum()) for p in [*prompts, None])
    return -(-longest // _BUCKET) * _BUCKET


def _program(model: unilip.Unilip, image_slot: int, latent_scale: float) -> Callable[..., jax.Array]:
  """Makes the function that samples a batch; it holds no array, so that its programs can be stored."""
  def sample(params, positive, negative, images, noise, fresh, guidance, *, size, steps, solver):
    return image_sampling.sample(
        model, params, positive, negative, images, noise, image_slot=image_slot, factor=latent_scale,
        size=size, steps=steps, guidance=guidance, solver=solver, fresh=fresh)

  return sample


def _indices(first: int | np.ndarray, count: int) -> np.ndarray:
  """Returns int[count], the index of each sample in its call."""
  return first if np.ndim(first) else first + np.arange(count)


def _first_noise(latents: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
  """Checks the first noise that a user gives: float32[n, h, w, C]."""
  if latents is None:
    return None
  given = np.asarray(latents)
  if given.shape != shape or not jnp.issubdtype(given.dtype, jnp.floating):
    raise ValueError(f"latents are {given.dtype}{list(given.shape)}; expected {shape} of float32")
  given = given.astype(np.float32)
  if bad := int(given.size - np.isfinite(given).sum()):
    raise ValueError(f"latents hold {bad} values that are NaN or infinite")
  return given


def padded_batches(items: Sequence[Any], size: int) -> Iterator[tuple[list[Any], int]]:
  """Yields (`size` items, number without padding); the last batch repeats its last item as padding."""
  for start in range(0, len(items), size):
    part = list(items[start:start + size])
    yield part + [part[-1]] * (size - len(part)), len(part)
