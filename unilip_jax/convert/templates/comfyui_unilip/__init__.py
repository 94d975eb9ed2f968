"""Nodes for ComfyUI: UniLIP's generation and editing, in this process or by a server.

Copy this folder into ComfyUI's `custom_nodes`, and the folder that it came with, whose model_index.json
names UniLIPPipeline, into `models/unilip`. Loading runs the code of that folder: read it first. With a
server (`unilip serve`, docs/serving.md of unilip_jax) no model is loaded here; an API key is read from the
environment variable UNILIP_API_KEY, since ComfyUI stores what a workflow holds with every image.
"""

import base64
import io
import json
import os
import secrets
import urllib.error
import urllib.request

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import PIL.Image
import torch

_KIND = "unilip"  # of models, for ComfyUI
_INDEX = "model_index.json"
_MOST = 10  # images of one call
_LARGEST_SEED = 2**64 - 1
_TIMEOUT = 600.0  # seconds of an answer of the server

folder_paths.add_model_folder_path(_KIND, os.path.join(folder_paths.models_dir, _KIND))


class _Folder:
  """An exported folder, run in this process."""

  def __init__(self, folder: str, dtype: str):
    from diffusers import DiffusionPipeline  # only for those who load a folder

    self._pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline="pipeline_unilip", trust_remote_code=True,
        torch_dtype=getattr(torch, dtype))
    self._pipe.set_progress_bar_config(disable=True)

  def sample(self, prompt, images, seed, steps, guidance, count):
    """Returns `count` images of PIL, or one for each of `images`; image i has the seed of `_seeds`."""
    bar = comfy.utils.ProgressBar(steps)

    def after(pipe, step, time, tensors):
      comfy.model_management.throw_exception_if_processing_interrupted()
      bar.update(1)
      return tensors

    count = len(images) if images else count
    noise = [torch.Generator("cpu").manual_seed(one) for one in _seeds(seed, count)]
    self._pipe.to(comfy.model_management.get_torch_device())
    try:
      return self._pipe(
          [prompt] * count, image=images, num_inference_steps=steps, guidance_scale=guidance,
          generator=noise, callback_on_step_end=after).images
    finally:  # ComfyUI does not know of this model's memory
      self._pipe.to(comfy.model_management.unet_offload_device())


class _Server:
  """`unilip serve`, or another server of OpenAI's API for images."""

  def __init__(self, url: str):
    if not url.startswith(("http://", "https://")):
      raise ValueError(f"url is {url!r}; give the server's, e.g. http://127.0.0.1:8000")
    self._url = url.rstrip("/").removesuffix("/v1") + "/v1/images/"

  def sample(self, prompt, images, seed, steps, guidance, count):
    """Returns images of PIL, as `_Folder.sample`; the noise of a seed is the server's own."""
    fields = {"prompt": prompt, "num_inference_steps": steps, "guidance_scale": guidance,
              "response_format": "b64_json"}
    if not images:
      body = json.dumps(fields | {"n": count, "seed": seed}).encode()
      return self._post("generations", body, "application/json")
    results = []
    for image, one in zip(images, _seeds(seed, len(images))):
      results += self._post("edits", *_form(fields | {"seed": one}, image))
    return results

  def _post(self, route: str, body: bytes, kind: str):
    comfy.model_management.throw_exception_if_processing_interrupted()
    headers = {"Content-Type": kind}
    if key := os.environ.get("UNILIP_API_KEY"):
      headers["Authorization"] = f"Bearer {key}"
    try:
      with urllib.request.urlopen(
          urllib.request.Request(self._url + route, body, headers), timeout=_TIMEOUT) as answer:
        data = json.load(answer)["data"]
    except urllib.error.HTTPError as error:
      raise RuntimeError(f"{self._url}{route} answered {error.code}: "
                         f"{error.read(2000).decode(errors='replace')}") from error
    return [PIL.Image.open(io.BytesIO(base64.b64decode(row["b64_json"]))).convert("RGB") for row in data]


def _form(fields, image: PIL.Image.Image) -> tuple[bytes, str]:
  """Returns (body, content type) of multipart/form-data with `fields` and an image."""
  png, edge = io.BytesIO(), secrets.token_hex(16)
  image.save(png, "PNG")
  parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
           for name, value in fields.items()]
  head = (f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="image.png"\r\n'
          "Content-Type: image/png\r\n\r\n")
  return (b"".join([*parts, head.encode(), png.getvalue(), f"\r\n--{edge}--\r\n".encode()]),
          f"multipart/form-data; boundary={edge}")


def _seeds(seed: int, count: int) -> list[int]:
  return [(seed + i) % (_LARGEST_SEED + 1) for i in range(count)]


def _folders() -> dict[str, str]:
  """Returns {name: path} of the exported folders below models/unilip."""
  found = {}
  for root in folder_paths.get_folder_paths(_KIND):
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
      index = os.path.join(root, name, _INDEX)
      if os.path.isfile(index):
        with open(index, encoding="utf-8") as file:
          if "UniLIPPipeline" in json.load(file).get("_class_name", ()):
            found.setdefault(name, os.path.join(root, name))
  return found


def _tensor(images) -> torch.Tensor:
  """Turns images of PIL into ComfyUI's: float32[B, H, W, 3] in 0 … 1."""
  return torch.from_numpy(np.stack([np.asarray(image, np.float32) / 255 for image in images]))


def _images(tensor: torch.Tensor) -> list[PIL.Image.Image]:
  """Turns ComfyUI's images into images of PIL, without an alpha channel."""
  pixels = (tensor[..., :3].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
  return [PIL.Image.fromarray(image) for image in pixels.numpy()]


def _inputs(**more):
  """Inputs of the nodes that sample."""
  return {"required": {
      "model": ("UNILIP",), **more,
      "seed": ("INT", {"default": 0, "min": 0, "max": _LARGEST_SEED, "control_after_generate": True}),
      "steps": ("INT", {"default": 20, "min": 1, "max": 1000}),
      "guidance": ("FLOAT", {"default": 4.5, "min": 0.0, "max": 30.0, "step": 0.1})}}


class UniLIPLoad:
  """Loads an exported folder of models/unilip."""

  CATEGORY, FUNCTION = "UniLIP", "load"
  RETURN_TYPES, RETURN_NAMES = ("UNILIP",), ("model",)

  @classmethod
  def INPUT_TYPES(cls):
    return {"required": {"folder": (list(_folders()),), "dtype": (["bfloat16", "float32"],)}}

  def load(self, folder, dtype):
    return (_Folder(_folders()[folder], dtype),)


class UniLIPServer:
  """Names a server that samples instead of this process."""

  CATEGORY, FUNCTION = "UniLIP", "connect"
  RETURN_TYPES, RETURN_NAMES = ("UNILIP",), ("model",)

  @classmethod
  def INPUT_TYPES(cls):
    return {"required": {"url": ("STRING", {"default": "http://127.0.0.1:8000"})}}

  def connect(self, url):
    return (_Server(url),)


class UniLIPGenerate:
  """Text to images."""

  CATEGORY, FUNCTION = "UniLIP", "generate"
  RETURN_TYPES = ("IMAGE",)

  @classmethod
  def INPUT_TYPES(cls):
    return _inputs(prompt=("STRING", {"multiline": True}),
                   batch_size=("INT", {"default": 1, "min": 1, "max": _MOST}))

  def generate(self, model, prompt, batch_size, seed, steps, guidance):
    return (_tensor(model.sample(prompt, None, seed, steps, guidance, batch_size)),)


class UniLIPEdit:
  """Images and an instruction to images, one for each."""

  CATEGORY, FUNCTION = "UniLIP", "edit"
  RETURN_TYPES = ("IMAGE",)

  @classmethod
  def INPUT_TYPES(cls):
    return _inputs(image=("IMAGE",), instruction=("STRING", {"multiline": True}))

  def edit(self, model, image, instruction, seed, steps, guidance):
    return (_tensor(model.sample(instruction, _images(image), seed, steps, guidance, len(image))),)


NODE_CLASS_MAPPINGS = {
    "UniLIPLoad": UniLIPLoad, "UniLIPServer": UniLIPServer, "UniLIPGenerate": UniLIPGenerate,
    "UniLIPEdit": UniLIPEdit}
NODE_DISPLAY_NAME_MAPPINGS = {
    "UniLIPLoad": "UniLIP: load a folder", "UniLIPServer": "UniLIP: use a server",
    "UniLIPGenerate": "UniLIP: generate", "UniLIPEdit": "UniLIP: edit"}
