"""UniLIP as a pipeline of diffusers: text to image, and image and instruction to image.

  from diffusers import DiffusionPipeline
  pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
  pipe("a red circle left of a blue square").images[0]
  pipe("make the red circle green", image=image).images[0]

A frozen InternVL reads the prompt, and the image of an edit, and then learned queries. A connector turns
its states into the context of a SANA transformer, which makes the latents of a DC-AE decoder. Numbers and
templates are those of unilip_jax, which wrote this folder: equal noise gives equal images.
"""

import math

from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.loaders import SanaLoraLoaderMixin
from diffusers.utils.torch_utils import randn_tensor
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

_LONGEST = 1024  # tokens of prompt and queries together
_STEPS = 1000  # of training's noise levels
_IMAGE_START, _IMAGE_END, _IMAGE_SLOT = "<img>", "</img>", "<IMG_CONTEXT>"
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n<img>"
_GENERATE, _EDIT = "<|im_start|>user\nGenerate an image", "<|im_start|>user\nEdit the image"
# Special tokens that people may write: InternVL's tags of objects and their places.
_GROUNDING = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class UniLIPPipeline(DiffusionPipeline, SanaLoraLoaderMixin):
  """Samples images; `load_lora_weights` adds adapters of the transformer."""

  _callback_tensor_inputs = ["latents"]  # noqa: RUF012 diffusers reads a list

  def __init__(self, tokenizer, mllm, connector, transformer, vae, scheduler):
    """Takes the components of the folder.

    Args:
      tokenizer: of the language model.
      mllm: transformers' InternVLForConditionalGeneration.
      connector: queries, connector and projector (unilip_connector.py).
      transformer: diffusers' SanaTransformer2DModel.
      vae: the pixel decoder (unilip_decoder.py).
      scheduler: diffusers' DPMSolverMultistepScheduler.
    """
    super().__init__()
    self.register_modules(tokenizer=tokenizer, mllm=mllm, connector=connector, transformer=transformer,
                          vae=vae, scheduler=scheduler)

  @property
  def image_size(self) -> int:
    """Pixels per side of an image; the model makes squares."""
    size = self.mllm.config.vision_config.image_size
    return size if isinstance(size, int) else size[0]

  @torch.no_grad()
  def __call__(
      self, prompt, image=None, height=None, width=None, num_inference_steps=20, guidance_scale=4.5,
      num_images_per_prompt=1, generator=None, latents=None, output_type="pil", return_dict=True,
      callback_on_step_end=None, callback_on_step_end_tensor_inputs=("latents",)):
    """Samples images.

    Args:
      prompt: text, or a list of texts.
      image: None; the image to edit; or a list with one for each prompt. Images of PIL, which are resized
        to the model's square without keeping the aspect ratio.
      height, width: None, or the model's own size; there are no others.
      num_inference_steps: 1 to 1000.
      guidance_scale: strength of the prompt, at least 0; 1 is without guidance, in half the time.
      num_images_per_prompt: images of one prompt are neighbours in the result.
      generator: of the first noise; one, or one for each image.
      latents: float[B, C, h, w], the first noise; None samples it.
      output_type: "pil", "np" (float32[B, H, W, 3] in 0 … 1), "pt" (float32[B, 3, H, W]) or "latent".
      return_dict: False returns (images,).
      callback_on_step_end: function of (pipe, step, time, {"latents": …}) that may return new latents.
      callback_on_step_end_tensor_inputs: must be ["latents"].

    Returns:
      ImagePipelineOutput with `images`.

    Raises:
      ValueError: for values that the model does not have.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    images = None if image is None else [image] if isinstance(image, PIL.Image.Image) else list(image)
    self._check(prompts, images, (height, width), num_inference_steps, guidance_scale, output_type,
                callback_on_step_end_tensor_inputs)
    guided, device = guidance_scale != 1, self._execution_device
    features = None if images is None else self.encode_images(images, device)
    if guided:  # from the dropped prompts, which come first, to the prompts
      features = None if features is None else torch.cat([features, features])
      context, mask = self.encode_prompts([None] * len(prompts) + prompts, features, device)
    else:
      context, mask = self.encode_prompts(prompts, features, device)
    context = context.to(self.transformer.dtype).repeat_interleave(num_images_per_prompt, dim=0)
    mask = mask.repeat_interleave(num_images_per_prompt, dim=0)
    latents = self._first_noise(len(prompts) * num_images_per_prompt, generator, latents, device)
    self.scheduler.set_timesteps(num_inference_steps, device=device)
    for i, time in enumerate(self.progress_bar(self.scheduler.timesteps)):
      both = torch.cat([latents, latents]) if guided else latents
      velocity = self.transformer(
          both.to(self.transformer.dtype), encoder_hidden_states=context, encoder_attention_mask=mask,
          timestep=time.float().expand(len(both)), return_dict=False)[0].float()
      if guided:
        negative, positive = velocity.chunk(2)
        velocity = negative + guidance_scale * (positive - negative)
      latents = self.scheduler.step(velocity, time, latents, return_dict=False)[0]
      if callback_on_step_end is not None:
        latents = callback_on_step_end(self, i, time, {"latents": latents}).get("latents", latents)
    result = latents if output_type == "latent" else self._output(self.decode(latents), output_type)
    self.maybe_free_model_hooks()
    return ImagePipelineOutput(images=result) if return_dict else (result,)

  def encode_images(self, images, device):
    """Computes the features of images of PIL that the language model reads: float[B, N, D]."""
    out = self.mllm.model.get_image_features(self._pixels(images).to(device, self.mllm.dtype))
    return out if torch.is_tensor(out) else out.pooler_output  # by release of transformers

  def encode_prompts(self, prompts, features, device):
    """Computes the context of the transformer.

    Args:
      prompts: texts; None is the dropped prompt, from which guidance leads away.
      features: of `encode_images`, of one image for each prompt; None without images.
      device: of the result.

    Returns:
      (float[B, S, caption width], bool[B, S] mask, False for pads).
    """
    language, dtype = self.mllm.model.language_model, self.mllm.dtype
    rows = [self.tokens(text, editing=features is not None) for text in prompts]
    tokens = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_token_id)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
      tokens[i, :len(row)], mask[i, :len(row)] = torch.tensor(row), True
    tokens, mask = tokens.to(device), mask.to(device)
    states = language.get_input_embeddings()(tokens)
    slots = (tokens == self.mllm.config.image_token_id)[..., None]
    if features is not None:
      states = states.masked_scatter(slots, features.to(dtype))
    # The queries follow the prompt; both are causal, so that a pass over the prompt alone gives the same.
    queries = self.connector.latent_queries.to(dtype).expand(len(rows), -1, -1)
    full = F.pad(mask, (0, queries.shape[1]), value=True)
    states = language(
        inputs_embeds=torch.cat([states, queries], dim=1), attention_mask=full.long(),
        position_ids=(full.long().cumsum(1) - 1).clamp(min=0), use_cache=False).last_hidden_state
    if features is not None:  # the connector reads the image itself, not what the language model made of it
      states = states.masked_scatter(F.pad(slots, (0, 0, 0, queries.shape[1])), features.to(dtype))
    return self.connector(states, full)

  def tokens(self, prompt, *, editing: bool) -> list[int]:
    """Lays out a prompt, None for the dropped one, and encodes it.

    Raises:
      ValueError: for a prompt that is empty or too long.
    """
    head, text = _EDIT if editing else _GENERATE, "."
    if prompt is not None:
      text = self._clean(prompt)
      if not text:
        raise ValueError(f"the prompt {prompt!r} has no text of its own")
      text = f": {text}"
    slots = _IMAGE_SLOT * self.mllm.config.image_seq_length
    image = f"\n{_IMAGE_START}{slots}{_IMAGE_END}" if editing else ""
    ids = self.tokenizer(f"{head}{text}{image}{_ANSWER}", add_special_tokens=False)["input_ids"]
    limit = _LONGEST - self.connector.latent_queries.shape[1]
    if len(ids) > limit:
      raise ValueError(f"a prompt has {len(ids)} tokens with its template, at most {limit} fit; shorten it")
    return ids

  def _clean(self, text: str) -> str:
    """Removes strings of special tokens from a prompt, so that none adds an image or a turn; one line."""
    normalizer = self.tokenizer.backend_tokenizer.normalizer
    normal = lambda x: x if normalizer is None else normalizer.normalize_str(x)
    tokens = sorted({*self.tokenizer.get_added_vocab()} - _GROUNDING, key=len, reverse=True)
    text = normal(text)
    while found := [token for token in tokens if token in text]:
      for token in found:
        text = text.replace(token, "")
      text = normal(text)
    return " ".join(text.split())

  def _pixels(self, images) -> torch.Tensor:
    """Resizes images and normalises them: float32[B, 3, R, R]."""
    rows = []
    for image in images:
      image, size = image.convert("RGB"), self.image_size
      # Columns after rows, as in training: PIL rounds to 8 bits in between.
      image = image.resize((size, image.height), PIL.Image.Resampling.BICUBIC)
      rows.append(np.asarray(image.resize((size, size), PIL.Image.Resampling.BICUBIC)))
    unit = torch.from_numpy(np.stack(rows)).float() / 255
    return ((unit - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(0, 3, 1, 2)

  def decode(self, latents: torch.Tensor) -> torch.Tensor:
    """Decodes scaled latents: float32[B, 3, R, R] in 0 … 1."""
    signed = self.vae((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).float().clamp(-1, 1)
    size = (self.image_size, self.image_size)
    return F.interpolate((signed + 1) / 2, size=size, mode="bilinear", align_corners=False)

  def _output(self, unit: torch.Tensor, output_type: str):
    if output_type == "pt":
      return unit
    array = unit.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
      return array
    return [PIL.Image.fromarray(x) for x in np.rint(array * 255).astype(np.uint8)]

  def _first_noise(self, count, generator, latents, device) -> torch.Tensor:
    side = math.isqrt(self.mllm.config.image_seq_length)
    shape = (count, self.transformer.config.in_channels, side, side)
    if latents is None:
      return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    if tuple(latents.shape) != shape:
      raise ValueError(f"latents are {list(latents.shape)}, not {list(shape)}")
    return latents.to(device, torch.float32)

  def _check(self, prompts, images, size, steps, guidance, output_type, callback_inputs) -> None:
    if not prompts or not all(isinstance(text, str) for text in prompts):
      raise ValueError("prompt must be a text or a list of texts")
    if images is not None and len(images) != len(prompts):
      raise ValueError(f"{len(images)} images, but {len(prompts)} prompts")
    for image in images or ():
      if not isinstance(image, PIL.Image.Image) or image.mode[0] in "IF" or image.mode == "LAB":
        mode = getattr(image, "mode", type(image).__name__)
        raise ValueError(f"image is {mode}; pass images of PIL of 8 bits, e.g. RGB")
    if any(x not in (None, self.image_size) for x in size):
      raise ValueError(f"height and width are {size}; this model makes {self.image_size} pixels squares")
    if not 1 <= steps <= _STEPS or guidance < 0:
      raise ValueError(f"num_inference_steps={steps}, guidance_scale={guidance}: choose 1 to {_STEPS}, "
                       "and at least 0")
    if output_type not in ("pil", "np", "pt", "latent") or list(callback_inputs) != ["latents"]:
      raise ValueError(f"output_type={output_type!r}: choose pil, np, pt or latent; callbacks get latents")
