"""Checks requests for images: fields of /v1/images/generations and /v1/images/edits."""

from collections.abc import Sequence
import dataclasses
import secrets

import numpy as np

from unilip_jax.common import rectangles
from unilip_jax.sampling import sampler
from unilip_jax.serve import api_errors, options, uploads
from unilip_jax.serve import fields as fields_lib

PROMPT_CHARS = 32_000
_LARGEST_SEED = 2**64 - 1
_CHOSEN_BITS = 32  # of a seed that the server chooses: JavaScript reads it exactly
_IGNORED = (
    "model", "user", "quality", "style", "moderation", "input_fidelity", "true_cfg_scale", "metadata")


@dataclasses.dataclass(frozen=True)
class ImageRequest:
  """Holds a checked request.

  Attributes:
    prompt: of all its images.
    seeds: one per image: the request's, counted up.
    options: of sampling.
    size: (height, width).
    image: uint8[height, width, 3] to edit, or None.
    output_format: of uploads.FORMATS.
    quality: of JPEG and WebP.
  """

  prompt: str
  seeds: Sequence[int]
  options: sampler.Options
  size: rectangles.Size
  image: np.ndarray | None
  output_format: str = "png"
  quality: int = 95

  def answer(self, created: int, images: Sequence[bytes]) -> dict:
    """Returns the JSON body for encoded images."""
    return {
        "created": created, "size": size_text(self.size), "output_format": self.output_format,
        "data": [{"b64_json": uploads.as_base64(image), "revised_prompt": None, "seed": seed}
                 for image, seed in zip(images, self.seeds)]}


def read(
    fields: fields_lib.Fields, image: np.ndarray | None, image_size: int, limits: options.Limits,
    offer: options.Offer) -> ImageRequest:
  """Checks the fields of a request.

  Args:
    fields: of JSON or a form; `image` and `image[]` are not among them.
    image: to edit, or None; fitted to its size.
    image_size: pixels per side of the model's images.
    limits: of the server.
    offer: of the server.

  Raises:
    ApiError: 400, naming the field and the choices.
  """
  prompt = fields.text("prompt", PROMPT_CHARS)
  if prompt is None:
    raise api_errors.ApiError(400, "missing_prompt", "prompt is missing", "prompt")
  size = size_of(fields, image_size, offer) or (image_size, image_size)
  fields.choice("response_format", ("b64_json",), "b64_json")
  _refuse(fields)
  fields.ignore(*_IGNORED)
  count = fields.integer("n", 1, limits.images) or fields.integer(
      "num_outputs_per_prompt", 1, limits.images, 1)
  return ImageRequest(
      prompt, seeds(fields.seed("seed"), count), sampling(fields, offer),
      size if image is None else image.shape[:2], image,
      fields.choice("output_format", uploads.FORMATS, "png"),
      fields.integer("output_compression", 0, 100, 95))


def seeds(seed: int | None, count: int) -> list[int]:
  """Returns the seeds of `count` images: seed, seed + 1, …; None chooses a random one.

  Raises:
    ApiError: 400 if they would exceed 64 bits.
  """
  if seed is None:
    seed = secrets.randbits(_CHOSEN_BITS)
  if seed + count - 1 > _LARGEST_SEED:
    raise api_errors.ApiError(400, "invalid_seed", "seed + n exceeds 64 bits", "seed")
  return [seed + i for i in range(count)]


def sampling(fields: fields_lib.Fields, offer: options.Offer) -> sampler.Options:
  """Reads the options of sampling: num_inference_steps, guidance_scale and solver."""
  steps = fields.integer("num_inference_steps", 1, 1000, offer.steps[0])
  if steps not in offer.steps:
    raise api_errors.ApiError(
        400, "invalid_num_inference_steps",
        f"num_inference_steps={steps}: this server offers {', '.join(map(str, sorted(offer.steps)))}",
        "num_inference_steps")
  guidance = fields.number("guidance_scale", 0.0, offer.max_guidance, offer.guidance)
  return sampler.Options(steps, guidance, fields.choice("solver", ("dpm", "euler"), "dpm"))


def _refuse(fields: fields_lib.Fields) -> None:
  """Refuses what OpenAI's API has and this server lacks."""
  fields.refuse("stream", "images are sent when they are complete", "false", "0")
  fields.refuse("partial_images", "images are sent when they are complete", 0, "0")
  fields.refuse("mask", "the model edits complete images; leave the mask out")
  fields.refuse("background", "images are opaque", "auto", "opaque")
  fields.refuse("negative_prompt", "the model was trained with an empty negative prompt")
  fields.refuse("lora", "adapters are no part of a request: serve the run that trained them")


def size_text(size: rectangles.Size) -> str:
  """Returns a size as OpenAI's API has it: WIDTHxHEIGHT."""
  return f"{size[1]}x{size[0]}"


def size_of(
    fields: fields_lib.Fields, image_size: int, offer: options.Offer) -> rectangles.Size | None:
  """Reads the size of the images: `size`, or `width` and `height`.

  Returns:
    (height, width); None if the request leaves it to the server.

  Raises:
    ApiError: 400 for a size that the server does not offer.
  """
  offered = {size_text(size): size for size in offer.all_sizes(image_size)}
  text = fields.text("size", 20) or "auto"
  width, height = (fields.integer(side, 1, 65536) for side in ("width", "height"))
  if (width, height) != (None, None):
    own = f"{width or image_size}x{height or image_size}"
    text = own if text in ("auto", own) else "other"
  if text == "auto":
    return None
  if text not in offered:
    raise api_errors.ApiError(
        400, "invalid_size", f"this server makes images of {', '.join(offered)} (width x height): leave "
        "size out, or send one of these or auto", "size")
  return offered[text]
