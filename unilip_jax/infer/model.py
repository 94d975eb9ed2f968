"""UniLIP in Python: encode, reconstruct, generate, edit and chat with a checkpoint.

  from unilip_jax import UniLIP
  model = UniLIP.load("runs/gen3")
  image = model.generate("a red circle left of a blue square")
  image.save("image.png")

Images go in as images of PIL in any mode, paths of files, or uint8[H, W, 3] arrays, one or several; several
inputs return a list. They come out as images of PIL, or with `output="array"` as uint8[H, W, 3]. The pixels
of an image are those of training (data/rgb.py). Programs are compiled once per shape; prompts are padded to
multiples of 32 tokens, batches to `batch_size`. `print(model)` shows stage, size, abilities and memory.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unilip_jax.common import arguments, rectangles, registry, tree
from unilip_jax.configs import base
from unilip_jax.data import text as text_lib
from unilip_jax.infer import adapters as adapters_lib
from unilip_jax.infer import chat as chat_lib
from unilip_jax.infer import description, loading, reconstruction, user_images
from unilip_jax.infer.user_images import UserImage
from unilip_jax.models import presets, quantization, unilip
from unilip_jax.models import tokenizer as tokenizer_lib
from unilip_jax.ops import backend, programs
from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling

UserImages = Image.Image | np.ndarray | list[Image.Image] | list[np.ndarray]  # results of a call


class UniLIP(adapters_lib.Adapted):
  """Runs a loaded model; see the module's docstring.

  The modules of a checkpoint determine its abilities. A tokenizer encodes and reconstructs. CLIP tower,
  mlp1 and LLM chat. The complete model also generates and edits.

  Attributes:
    dims: of the model; None for a tokenizer alone. Entries of absent modules are None.
    tokenizer_dims: of the tokenizer.
    image_size: pixels per side of generated and edited images and of chat's tiles.
  """

  def __init__(
      self, params: Mapping[str, Any], tokenizer_dims: presets.TokenizerDims, *,
      dims: presets.UnilipDims | None = None, condition: str = "both",
      text: text_lib.Text | None = None, system: str = base.SYSTEM, dtype: str = "bfloat16",
      batch_size: int = 8, int8: bool = False, name: str = "", stage: str = ""):
    """Wraps parameters; `UniLIP.load` is the usual way.

    Args:
      params: by module name.
      tokenizer_dims: of the tokenizer.
      dims: of the complete model, or of the modules of chat; None for a tokenizer alone.
      condition: of the DiT, see models/unilip.py.
      text: tokenizer of prompts; all methods but encode and reconstruct need it.
      system: default system message of conversations.
      dtype: of the computation and of the parameters in memory.
      batch_size: examples that run at once.
      int8: keep the weights of large matrix multiplications in int8, with scales
        (models/quantization.py).
      name: path of the weights, for `print`.
      stage: that trained them, for `print`.
    """
    loading.check_options(dtype, batch_size=batch_size, int8=int8)
    self._name, self._stage, self._dtype = name, stage, dtype
    self._announced: set[str] = set()
    # Of weights of a plug-in: tells of the words of a prompt that they lack, which adapters may have.
    prefix = name.partition(":")[0]
    self._unknown_words: Callable[[Sequence[str]], str] | None = (
        registry.find("vocabulary", prefix) if registry.has("vocabulary", prefix) else None)
    self.dims, self.tokenizer_dims, self._text = dims, tokenizer_dims, text
    self._system = system
    self.image_size, self._batch_size = tokenizer_dims.vit.image_size, batch_size
    params = tree.map_with_path(
        lambda path, x: jnp.asarray(x, loading.dtype_of(path, x.dtype, dtype)), dict(params))
    self._adapters = adapters_lib.Adapters(quantization.quantize(params) if int8 else params)
    self._params = self._adapters.params()
    tokenizer = tokenizer_lib.Tokenizer(tokenizer_dims, jnp.dtype(dtype))
    self._encode, self._reconstruct = map(programs.Program, reconstruction.functions(tokenizer))
    if dims is not None and text is not None:
      self._model = model = unilip.Unilip(dims, jnp.dtype(dtype), condition)
      sizes = dict(image_size=self.image_size, batch_size=batch_size)
      self._chat = chat_lib.Chat(model, text, **sizes)
      if dims.dit is not None:
        self._sampler = sampler.Sampler(model, text, latent_scale=dims.factor, **sizes)

  @classmethod
  def load(
      cls, path: str, dtype: str = "bfloat16", *, batch_size: int = 8, int8: bool = False,
      adapters: adapters_lib.Settings = (),
      compilation_cache: str = base.COMPILATION_CACHE
  ) -> "UniLIP":
    """Reads a checkpoint.

    Arrays are read from disk onto the device in `dtype`, one after another.

    Args:
      path: a workdir, `workdir/checkpoints/<step>` or a folder of imported weights, local or gs://; or
        included weights, "shapes:<name>".
      dtype: "bfloat16" | "float32".
      batch_size: examples that run at once.
      int8: keep the weights of large matrix multiplications in int8, with scales
        (models/quantization.py): 1.98 GB at 1b instead of 3.57 in bfloat16. The device rounds them after
        they were read in `dtype`.
      adapters: to load on top, as of `load_adapter`: "PATH", "PATH:WEIGHT", several of them, or
        {path: weight}. Each is named by its path.
      compilation_cache: folder of compiled programs, for the next process; "" keeps none. A folder that
        JAX has already is left.

    Raises:
      FileNotFoundError: if there are no weights; the message explains what to download or run.
      ValueError: if the weights can neither reconstruct nor chat; before they are read, for other values
        of an option.
    """
    loading.check_options(dtype, batch_size=batch_size, int8=int8)
    weights = adapters_lib.parse(adapters)
    if not jax.config.jax_compilation_cache_dir:
      backend.enable_compilation_cache(compilation_cache)
    read = loading.read(path, dtype)
    model = cls(read.params, read.tokenizer_dims, dims=read.dims, condition=read.condition, text=read.text,
                system=read.system, dtype=dtype, batch_size=batch_size, int8=int8, name=read.name,
                stage=read.stage)
    for adapter, weight in weights.items():
      model.load_adapter(adapter, weight)
    return model

  def __repr__(self) -> str:
    return description.describe(
        self._name, self._stage, self._params, image_size=self.image_size, dtype=self._dtype,
        batch_size=self._batch_size, has_text=self._text is not None)

  # ---- images to images

  def encode(self, images: UserImage | Sequence[UserImage]) -> np.ndarray | list[np.ndarray]:
    """Encodes images, resized to the model's square, as latents float32[h, w, c].

    Raises:
      ValueError: for a checkpoint without the tokenizer.
    """
    self._check_modules("encode", "encoding")
    inputs, single = user_images.as_list(images)
    arrays = [user_images.stretched(x, self.image_size) for x in user_images.as_arrays(inputs)]
    self._announce("encode")
    out = [z for part, count in sampler.padded_batches(arrays, min(self._batch_size, len(arrays)))
           for z in np.asarray(self._encode(self._params, np.stack(part)))[:count]]
    return out[0] if single else out

  def reconstruct(
      self, images: UserImage | Sequence[UserImage], *, output: str = "pil") -> UserImages:
    """Encodes and decodes images of any size, reflect-padded to complete tokens.

    Images of one size run in batches; images larger than the model's square run one by one.

    Args:
      images: one or several.
      output: "pil" | "array", as of `generate`.

    Raises:
      ValueError: for an image smaller than half a token, or a checkpoint without the tokenizer.
    """
    self._check_modules("reconstruct", "reconstruction")
    arguments.choice("output", output, user_images.OUTPUTS)
    inputs, single = user_images.as_list(images)
    arrays = user_images.as_arrays(inputs)
    self._announce("reconstruct")
    out: list[Any] = [None] * len(arrays)
    for group in user_images.by_shape(arrays, 3 * self.image_size**2):
      for part, count in sampler.padded_batches(group, min(self._batch_size, len(group))):
        batch = np.asarray(self._reconstruct(self._params, np.stack([arrays[i] for i in part])))
        for i, image in zip(part[:count], batch):
          out[i] = image
    return user_images.as_output(out, output, single=single)

  # ---- text to images, images and text to images

  def generate(
      self, prompts: str | Sequence[str], *, steps: int | None = None, guidance: float | None = None,
      seed: int = 0, latents: np.ndarray | None = None, solver: str = "dpm",
      guidance_interval: Sequence[float] | None = None, guidance_rescale: float = 0.0,
      size: rectangles.Size | None = None, output: str = "pil"
  ) -> UserImages:
    """Generates images from prompts.

    Args:
      prompts: one or several.
      steps: network evaluations, 1 to 1000; None takes 20, or 4 of a checkpoint that was distilled to a few
        steps (configs/few_step.py).
      guidance: strength of the prompt, at least 0; 1 is without guidance, in half the time. None takes 4.5,
        or 1 of such a checkpoint, which has its guidance inside.
      seed: any integer of 64 bits; sample i of a call depends on (seed, i) alone.
      latents: float32[B, h, w, C], the first noise, for exact reproduction; None samples it.
      solver: "dpm" | "euler"; a few-step checkpoint has its own.
      guidance_interval: (low, high) noise levels, 0 to 1, between which guidance applies; None is
        everywhere. Steps outside take half the time.
      guidance_rescale: 0 to 1, against colours that strong guidance saturates.
      size: (height, width) in pixels, multiples of the side of a token; None is the model's square. Each
        size compiles a program; a checkpoint that was trained on squares makes poor others.
      output: "pil" returns images of PIL, "array" uint8[H, W, 3].

    Returns:
      An image; a list of them for a list of prompts.

    Raises:
      ValueError: for empty or too long prompts, other values of an option, or a checkpoint without
        generation; of a size, with the nearest ones that are allowed.
    """
    options = self._options(steps, guidance, solver, guidance_interval, guidance_rescale)
    arguments.choice("output", output, user_images.OUTPUTS)
    size = self._size(size)
    texts, single = text_lib.as_list(prompts)
    self._check_prompts(texts, "generate", "generation")
    self._announce("generate")
    out = self._sampler.generate(self._params, texts, options, seed=seed, latents=latents, size=size)
    return user_images.as_output(out, output, single=single)

  def edit(
      self, images: UserImage | Sequence[UserImage], instructions: str | Sequence[str], *,
      steps: int | None = None, guidance: float | None = None, seed: int = 0,
      latents: np.ndarray | None = None, solver: str = "dpm",
      guidance_interval: Sequence[float] | None = None, guidance_rescale: float = 0.0,
      size: rectangles.Size | None = None, keep_shape: bool = False, keep_size: bool = False,
      output: str = "pil"
  ) -> UserImages:
    """Edits images as instructed; arguments as of `generate`.

    Args:
      images: resized to the model's square, or to `size`, without keeping the aspect ratio.
      instructions: one per image.
      keep_shape: make each result of the aspect-ratio bucket (common/rectangles.py) nearest to its input's
        shape, to which the input is resized.
      keep_size: resize results back to the inputs' sizes, and so to their aspect ratios.
    """
    options = self._options(steps, guidance, solver, guidance_interval, guidance_rescale)
    arguments.flag("keep_size", keep_size)
    arguments.exclusive(size=size is not None, keep_shape=arguments.flag("keep_shape", keep_shape))
    size = self._size(size)
    arguments.choice("output", output, user_images.OUTPUTS)
    texts, single = text_lib.as_list(instructions)
    inputs, _ = user_images.as_list(images)
    if len(inputs) != len(texts):
      raise ValueError(f"{len(inputs)} images, but {len(texts)} instructions")
    self._check_prompts(texts, "edit", "editing")
    arrays = user_images.as_arrays(inputs)
    self._announce("edit")
    side = self.tokenizer_dims.vit.pixels_per_token
    fitted = [user_images.stretched(
        x, rectangles.nearest_bucket(x.shape[:2], self.image_size, side) if keep_shape else size)
        for x in arrays]
    out = self._sampler.edit(self._params, fitted, texts, options, seed=seed, latents=latents)
    if keep_size:
      out = [user_images.resized(o, x.shape[:2]) for o, x in zip(out, arrays)]
    return user_images.as_output(out, output, single=single)

  # ---- images and text to text

  def chat(
      self, images: UserImage | Sequence[UserImage | Sequence[UserImage] | None] | None,
      questions: str | Sequence[str | Sequence[str]], *, max_new_tokens: int = 256,
      temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, max_tiles: int = 12,
      system: str | None = None
  ) -> str | list[str]:
    """Answers questions about images.

    Args:
      images: one per question; None for a question without, a list for one about several images.
      questions: a question, or a conversation [question, answer, question, …] each.
      max_new_tokens: longest answer, at least 1.
      temperature: at least 0, which takes the likeliest token.
      top_p: nucleus, above 0 and at most 1, see sampling.text.pick.
      seed: any integer of 64 bits; answer i of a call depends on (seed, i) alone.
      max_tiles: most tiles of a large image (data/tiles.py), at least 1.
      system: system message; None is that of the checkpoint's training, or InternVL's for imported weights.

    Returns:
      The answer, or a list of them.

    Raises:
      ValueError: for empty questions, other values of an option, or a checkpoint without an LLM.
    """
    options = text_sampling.Options(max_new_tokens, temperature, top_p)
    asked, single = text_lib.as_list(questions)
    conversations = [list(q) if isinstance(q, list | tuple) else [q] for q in asked]
    inputs = [None] * len(conversations) if images is None else user_images.as_list(images)[0]
    if len(inputs) != len(conversations):
      raise ValueError(f"{len(inputs)} images, but {len(conversations)} questions")
    self._check_prompts(
        [text for strings in conversations for text in strings], "chat", "chat")
    several = [one if isinstance(one, list | tuple) else [] if one is None else [one] for one in inputs]
    arrays = [[user_images.as_array(image, f"image {i}") for image in each]
              for i, each in enumerate(several)]
    self._announce("chat")
    answers = self._chat.answer(
        self._params, arrays, conversations, options, seed=seed,
        system=self._system if system is None else system,
        max_tiles=arguments.integer("max_tiles", max_tiles, 1))
    return answers[0] if single else answers

  # ---- shared

  def _size(self, size: Any) -> rectangles.Size:
    return (self.image_size,) * 2 if size is None else rectangles.check(
        "size", size, self.image_size, self.tokenizer_dims.vit.pixels_per_token)

  def _options(self, steps, guidance, solver, interval, rescale) -> sampler.Options:
    return sampler.Options.of(
        self.dims.few_step if self.dims else "", steps=steps, guidance=guidance, solver=solver,
        guidance_interval=interval, guidance_rescale=rescale)

  def _check_modules(self, method: str, ability: str) -> None:
    absent = [name for name in description.ABILITIES[method] if name not in self._params]
    if absent:
      raise ValueError(
          f"this checkpoint lacks {', '.join(absent)}, which {ability} needs; it holds "
          f"{', '.join(self._params)}. A checkpoint of gen1 to gen3 or a complete UniLIP folder has all")

  def _check_prompts(self, prompts: Sequence[str], method: str, ability: str) -> None:
    self._check_modules(method, ability)
    if self._text is None:
      raise ValueError(f"{ability} needs the tokenizer of prompts (`text`)")
    self._text.check(prompts)
    if self._unknown_words and not self.adapters and (note := self._unknown_words(prompts)):
      logging.warning("%s: %s", self._name, note)
      self._unknown_words = None  # once

  def _announce(self, method: str) -> None:
    """Says at the first call of a method why it may take long; warnings are shown without set-up."""
    if method not in self._announced:
      self._announced.add(method)
      logging.warning(
          "the first call of `%s` compiles its program for the shape, unless an earlier process kept it "
          "on disk: half a minute for the included weights on a CPU, minutes at 1b; later calls start at "
          "once", method)
