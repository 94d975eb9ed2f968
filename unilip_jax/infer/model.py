"""UniLIP for use: encode, reconstruct, generate, edit and chat with a checkpoint.

  from unilip_jax import UniLIP
  model = UniLIP.load("runs/gen3")
  image, = model.generate(["a red circle left of a blue square"])

Images are PIL images or uint8[H, W, 3] arrays, one or a list; a list in gives a list out. Programs are
compiled once per shape; prompts are padded to multiples of 32 tokens, batches to `batch_size`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unilip_jax.configs import base
from unilip_jax.data import text as text_lib
from unilip_jax.data import tiles
from unilip_jax.infer import language, loading
from unilip_jax.infer import pictures as pictures_lib
from unilip_jax.infer.pictures import Picture
from unilip_jax.models import presets, quantization, unilip
from unilip_jax.models import tokenizer as tokenizer_lib
from unilip_jax.ops import image as image_ops
from unilip_jax.sampling import images as image_sampling
from unilip_jax.sampling import text as text_sampling

_LONGEST = 1024  # tokens of prompt and queries together (official)
_BUCKET = 32  # prompts are padded to multiples of this


class UniLIP:
  """A loaded model; see the module's docstring.

  What a checkpoint lacks decides what works: a tokenizer alone encodes and reconstructs, CLIP tower,
  mlp1 and LLM chat, the whole model does everything.

  Attributes:
    dims: of the model; None for a tokenizer alone. Entries of what is not there are None.
    tokenizer_dims: of the tokenizer.
    image_size: pixels per side that generation, editing and chat work at.
  """

  def __init__(
      self, params: Mapping[str, Any], tokenizer_dims: presets.TokenizerDims, *,
      dims: presets.UnilipDims | None = None, condition: str = "both",
      text: text_lib.Text | None = None, system: str = base.SYSTEM, dtype: str = "bfloat16",
      batch_size: int = 8, int8: bool = False):
    """Wraps parameters; `UniLIP.load` is the usual way.

    Args:
      params: by module name.
      tokenizer_dims: of the tokenizer.
      dims: of the whole model, or of what can chat; None where there is only the tokenizer.
      condition: what the DiT was trained to read, see models/unilip.py.
      text: tokenizer of prompts; needed by all but encode and reconstruct.
      system: message of conversations that bring none.
      dtype: of the computation and of the parameters in memory.
      batch_size: examples that run at once.
      int8: keep the weights of large products in int8, with scales (models/quantization.py).
    """
    self.dims, self.tokenizer_dims, self._text = dims, tokenizer_dims, text
    self._system = system
    self.image_size, self._batch = tokenizer_dims.vit.image_size, batch_size
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.dtype(dtype)), dict(params))
    self._params = quantization.quantize(params) if int8 else params
    self._tokenizer = tokenizer_lib.Tokenizer(tokenizer_dims, jnp.dtype(dtype))
    self._model = dims and unilip.Unilip(dims, jnp.dtype(dtype), condition)
    self._slots = tokenizer_dims.image_tokens(self.image_size)
    self._reconstruct = jax.jit(self._reconstruct_batch)
    self._encode = jax.jit(lambda params, image: self._tokenizer.apply(
        {"params": params}, image_ops.unit_from_pixels(image), method="encode")[0].astype(jnp.float32))
    self._noise = jax.jit(image_sampling.noise, static_argnames="shape")
    self._sample = jax.jit(self._sample_batch, static_argnames=("steps", "solver"))
    self._answer = jax.jit(
        self._answer_batch, static_argnames=("max_new_tokens", "temperature", "top_p"))

  @classmethod
  def load(
      cls, path: str, dtype: str = "bfloat16", *, batch_size: int = 8, int8: bool = False
  ) -> "UniLIP":
    """Reads a checkpoint.

    Arrays go from disk onto the device in `dtype`, one after the other.

    Args:
      path: a workdir, `workdir/checkpoints/<step>` or a folder of imported weights, local or gs://; or
        "shapes:<name>", what ships for the Shapes world (pretrained.py).
      dtype: "bfloat16" | "float32".
      batch_size: examples that run at once.
      int8: keep the weights of large products in int8, with scales (models/quantization.py): at 1b
        1.98 GB in place of bfloat16's 3.57. They are rounded on the device once `dtype` is there.

    Raises:
      FileNotFoundError: if nothing is there, saying what to download or run.
      ValueError: if the weights can neither reconstruct nor chat.
    """
    read = loading.read(path, dtype)
    return cls(read.params, read.tokenizer_dims, dims=read.dims, condition=read.condition, text=read.text,
               system=read.system, dtype=dtype, batch_size=batch_size, int8=int8)

  # ---- images to images

  def encode(self, images: Picture | Sequence[Picture]) -> np.ndarray | list[np.ndarray]:
    """Latents float32[h, w, C] of images squashed to the model's square.

    Raises:
      ValueError: for a checkpoint without the tokenizer.
    """
    self._needs(tokenizer_lib.MODULES[:3], "encoding")
    pictures, single = pictures_lib.listed(images)
    arrays = [pictures_lib.squashed(p, self.image_size) for p in pictures]
    out = [z for part, real in self._batches(arrays)
           for z in np.asarray(self._encode(self._params, np.stack(part)))[:real]]
    return out[0] if single else out

  def reconstruct(self, images: Picture | Sequence[Picture]) -> np.ndarray | list[np.ndarray]:
    """Encodes and decodes images of any size: uint8[H, W, 3], reflect-padded inside to whole tokens.

    Images of one size run in batches; those larger than the model's square run one by one.

    Raises:
      ValueError: for an image smaller than half a token, or a checkpoint without the tokenizer.
    """
    self._needs(tokenizer_lib.MODULES, "reconstruction")
    pictures, single = pictures_lib.listed(images)
    arrays = [pictures_lib.array(p) for p in pictures]
    alike: dict[Any, list[int]] = {}  # images of one size run together, but for large ones
    for i, array in enumerate(arrays):
      large = array.size > 3 * self.image_size**2
      alike.setdefault((array.shape, i if large else -1), []).append(i)
    out: list[Any] = [None] * len(arrays)
    for group in alike.values():
      for part, real in self._batches(group):
        made = np.asarray(self._reconstruct(self._params, np.stack([arrays[i] for i in part])))
        for i, image in zip(part[:real], made):
          out[i] = image
    return out[0] if single else out

  def _reconstruct_batch(self, params, pixels):
    unit = image_ops.unit_from_pixels(pixels)
    padded, size = image_ops.pad_to_multiple(unit, self.tokenizer_dims.vit.pixels_per_token)
    aligned = padded.shape != unit.shape  # the official padded protocol; whole tokens need none
    made = self._tokenizer.apply({"params": params}, padded, align_corners=aligned)
    unit = image_ops.unpad(image_ops.unit_from_signed(made["reconstruction"]), size)
    return image_ops.pixels_from_unit(unit)

  # ---- text to images, images and text to images

  def generate(
      self, prompts: str | Sequence[str], *, steps: int = 20, guidance: float = 4.5, seed: int = 0,
      latents: np.ndarray | None = None, solver: str = "dpm"
  ) -> np.ndarray | list[np.ndarray]:
    """Makes images from prompts.

    Args:
      prompts: one or several.
      steps: network evaluations.
      guidance: strength of the prompt; 1 is without guidance.
      seed: sample i of a call depends on (seed, i) alone.
      latents: float32[B, h, w, C], the first noise, for exact reproduction; None draws it.
      solver: "dpm" | "euler".

    Returns:
      uint8[R, R, 3], or a list of them.

    Raises:
      ValueError: for empty or too long prompts, or a checkpoint without generation.
    """
    asked, single = ([prompts], True) if isinstance(prompts, str) else (list(prompts), False)
    text = self._needs_text(asked, unilip.MODULES, "generation")
    length = self._length(text.generation, asked)
    rows = [text.generation(p, length) for p in asked]
    dropped = text.generation(None, length)
    out = self._sampled(rows, dropped, None, latents, seed, guidance, steps, solver)
    return out[0] if single else out

  def edit(
      self, images: Picture | Sequence[Picture], instructions: str | Sequence[str], *,
      steps: int = 20, guidance: float = 4.5, seed: int = 0, latents: np.ndarray | None = None,
      solver: str = "dpm", keep_size: bool = False
  ) -> np.ndarray | list[np.ndarray]:
    """Edits images as told; arguments as of `generate`.

    Args:
      images: squashed to the model's square, as in training.
      instructions: one per image.
      keep_size: bring results back to the inputs' sizes and so to their aspect ratios.
    """
    asked, single = ([instructions], True) if isinstance(instructions, str) else (
        list(instructions), False)
    pictures, _ = pictures_lib.listed(images)
    if len(pictures) != len(asked):
      raise ValueError(f"{len(pictures)} images, but {len(asked)} instructions")
    text = self._needs_text(asked, unilip.MODULES, "editing")
    layout = lambda prompt, length: text.editing(prompt, self._slots, length)
    length = self._length(layout, asked)
    rows = [layout(p, length) for p in asked]
    pixels = [pictures_lib.squashed(p, self.image_size)[None] for p in pictures]
    out = self._sampled(
        rows, layout(None, length), pixels, latents, seed, guidance, steps, solver)
    if keep_size:
      sizes = [pictures_lib.array(p).shape[1::-1] for p in pictures]
      out = [np.asarray(Image.fromarray(o).resize(size, Image.Resampling.BICUBIC))
             for o, size in zip(out, sizes)]
    return out[0] if single else out

  def _sampled(self, rows, dropped, pixels, latents, seed, guidance, steps, solver):
    h = self.tokenizer_dims.tokens_per_side(self.image_size)
    shape = (h, h, self.dims.dit.channels)
    if latents is not None and np.shape(latents) != (len(rows), *shape):
      raise ValueError(f"latents {np.shape(latents)}; wanted {(len(rows), *shape)}")
    out, first = [], 0
    for part, real in self._batches(list(range(len(rows)))):
      positive = text_lib.stacked([rows[i] for i in part])
      # Without images one serves all.
      negative = text_lib.stacked([dropped] * (1 if pixels is None else len(part)))
      start = (self._noise(seed, first, shape=(len(part), *shape)) if latents is None
               else np.asarray(latents, np.float32)[np.asarray(part)])
      images = None if pixels is None else np.stack([pixels[i] for i in part])
      made = self._sample(self._params, positive, negative, images, start, jnp.float32(guidance),
                          steps=steps, solver=solver)
      out += list(np.asarray(made)[:real])
      first += real
    return out

  def _sample_batch(self, params, positive, negative, images, start, guidance, *, steps, solver):
    return image_sampling.sample(
        self._model, params, positive, negative, images, start, image_slot=self._text.image_slot,
        factor=self.dims.factor, image_size=self.image_size, steps=steps, guidance=guidance,
        solver=solver)

  # ---- images and text to text

  def chat(
      self, images: Picture | Sequence[Picture | None] | None,
      questions: str | Sequence[str | Sequence[str]], *, max_new_tokens: int = 256,
      temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, max_tiles: int = 12,
      system: str | None = None
  ) -> str | list[str]:
    """Answers questions about images.

    Args:
      images: one per question; None for a question without.
      questions: a question, or a conversation [question, answer, question, …] each.
      max_new_tokens: longest answer.
      temperature: 0 takes the likeliest token.
      top_p: nucleus, see sampling.text.pick.
      seed: answer i of a call depends on (seed, i) alone.
      max_tiles: tiles that a large image is cut into at most (data/tiles.py).
      system: message; None is what the checkpoint was trained with, InternVL's where it is imported.

    Returns:
      The answer, or a list of them.

    Raises:
      ValueError: for empty questions or a checkpoint without language.
    """
    single = isinstance(questions, str)
    asked = [[questions]] if single else [[q] if isinstance(q, str) else list(q) for q in questions]
    pictures = [None] * len(asked) if images is None else pictures_lib.listed(images)[0]
    if len(pictures) != len(asked):
      raise ValueError(f"{len(pictures)} images, but {len(asked)} questions")
    text = self._needs_text([turn for turns in asked for turn in turns], unilip.UNDERSTANDING, "chat")
    cut = [None if p is None else tiles.tiles(
        Image.fromarray(pictures_lib.array(p)), self.image_size, max_tiles) for p in pictures]
    system = self._system if system is None else system
    ids = [text.encode(text.chat(language.turns(turns), 0 if c is None else len(c), self._slots,
                                 system=system)) for turns, c in zip(asked, cut)]
    length = -(-max(map(len, ids)) // _BUCKET) * _BUCKET
    most = max((len(c) for c in cut if c is not None), default=0)
    answers, first = [], 0
    for part, real in self._batches(list(range(len(asked)))):
      tokens = np.full((len(part), length), text.pad, np.int32)
      for row, i in enumerate(part):
        tokens[row, :len(ids[i])] = ids[i]
      mask = np.arange(length)[None] < np.array([len(ids[i]) for i in part])[:, None]
      pixels = None
      if most:
        pixels = np.zeros((len(part), most, self.image_size, self.image_size, 3), np.uint8)
        for row, i in enumerate(part):
          if cut[i] is not None:
            pixels[row, :len(cut[i])] = cut[i]
      out, counts = jax.device_get(self._answer(
          self._params, tokens, mask, pixels, np.int32(first), np.uint32(seed),
          max_new_tokens=max_new_tokens, temperature=float(temperature), top_p=float(top_p)))
      answers += [text.decode(o[:n]).strip() for o, n in zip(out[:real], counts)]
      first += real
    return answers[0] if single else answers

  def _answer_batch(
      self, params, tokens, mask, pixels, first, seed, *, max_new_tokens, temperature, top_p):
    logits, cache = self._model.answer_prefill(
        params, tokens, mask, self._text.image_slot, self._model.pixel_features(params, pixels))
    return text_sampling.decode(
        lambda t, valid, c: self._model.answer_step(params, t, valid, c), logits, cache,
        max_new_tokens=max_new_tokens, stop=self._text.turn_end, seed=seed, first=first,
        temperature=temperature, top_p=top_p)

  # ---- shared

  def _needs(self, modules: Sequence[str], what: str) -> None:
    absent = [name for name in modules if name not in self._params]
    if absent:
      raise ValueError(
          f"this checkpoint lacks {', '.join(absent)}, which {what} needs; it holds "
          f"{', '.join(self._params)}. A checkpoint of gen1 to gen3 or a whole UniLIP folder has all")

  def _needs_text(
      self, asked: Sequence[str], modules: Sequence[str], what: str) -> text_lib.Text:
    self._needs(modules, what)
    if self._text is None:
      raise ValueError(f"{what} needs the tokenizer of prompts (`text`)")
    if not asked:
      raise ValueError("no prompt was given")
    for i, prompt in enumerate(asked):
      if not self._text.clean(prompt):
        raise ValueError(f"prompt {i} is empty")
    return self._text

  def _length(self, layout, prompts: Sequence[str]) -> int:
    """Tokens that all prompts fit into: a multiple of 32."""
    limit = _LONGEST - self.dims.connector.queries
    for i, prompt in enumerate(prompts):
      count = int(layout(prompt, 64 * _LONGEST)[1].sum())
      if count > limit:
        raise ValueError(f"prompt {i} has {count} tokens with its frame, at most {limit} fit; "
                         "shorten it")
    longest = max(int(layout(p, _LONGEST)[1].sum()) for p in [*prompts, None])
    return -(-longest // _BUCKET) * _BUCKET

  def _batches(self, items: Sequence[Any]) -> Iterator[tuple[list[Any], int]]:
    """(items padded to the batch size by repeating the last, number of real ones)."""
    size = min(self._batch, len(items))
    for start in range(0, len(items), size):
      part = list(items[start:start + size])
      yield part + [part[-1]] * (size - len(part)), len(part)

