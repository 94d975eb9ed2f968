"""The recorded official models as our dimensions and parameters."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import torch as safetensors_torch
import torch

from unilip_jax.convert import dcae as dcae_convert
from unilip_jax.convert import engine, modules, perceptual
from unilip_jax.convert import internvit as internvit_convert
from unilip_jax.convert import sana as sana_convert
from unilip_jax.convert import unilip as unilip_convert
from unilip_jax.models import presets, unilip


def dcae_dims(folder: pathlib.Path):
  """(encoder, decoder) of golden/pretrained/vae."""
  return dcae_convert.from_config(
      json.loads((folder / "pretrained/vae/config.json").read_text()))


def tokenizer_dims(folder: pathlib.Path) -> presets.TokenizerDims:
  return presets.TokenizerDims(
      vit=presets.VitDims(depth=3, width=64, heads=4, mlp=128, patch=14, image_size=112),
      llm_width=48, latent_depth=3, decoder=dcae_dims(folder)[1])


def tokenizer_rules(dims: presets.TokenizerDims) -> list[engine.Rule]:
  """Rules of the `.pth` layout."""
  return [*internvit_convert.rules(dims.vit, "encoder.", "vision_tower/"),
          *internvit_convert.mlp1_rules("mlp1.", "mlp1/"),
          *unilip_convert.latent_head_rules(dims.latent_depth, "", "latent_head/"),
          *dcae_convert.decoder_rules(dims.decoder, "decoder.", "decoder/")]


@functools.cache
def torch_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The recorded `.pth`, float32."""
  state = torch.load(folder / "ckpt/tiny_unilip.pth", weights_only=True)
  return {name: tensor.float().numpy() for name, tensor in state.items()}


@functools.cache
def tokenizer_params(folder: pathlib.Path):
  """{module: tree} of the recorded tokenizer."""
  dims = tokenizer_dims(folder)
  return engine.from_torch(torch_tensors(folder), tokenizer_rules(dims), None)


@functools.cache
def dcae_encoder_params(folder: pathlib.Path):
  """Parameters of the encoder of golden/pretrained/vae."""
  tensors = safetensors_torch.load_file(
      folder / "pretrained/vae/diffusion_pytorch_model.safetensors")
  arrays = {k: v.float().numpy() for k, v in tensors.items() if k.startswith("encoder.")}
  return engine.from_torch(
      arrays, dcae_convert.encoder_rules(dcae_dims(folder)[0], "encoder.", ""), None)


def nhwc(array: np.ndarray) -> np.ndarray:
  """NCHW -> NHWC."""
  return np.moveaxis(array, 1, -1)


def paths_by_torch_name(dims: presets.TokenizerDims) -> dict[str, str]:
  """torch name -> our path."""
  return {part.replace("{i}", str(i)): rule.path.replace("{i}", str(i))
          for rule in tokenizer_rules(dims) for part in rule.parts
          for i in range(max(1, rule.count))}


@functools.cache
def unilip_dims(folder: pathlib.Path) -> presets.UnilipDims:
  """The recorded UniLIP folder."""
  config = json.loads((folder / "pretrained/dit/transformer/config.json").read_text())
  return presets.UnilipDims(
      tokenizer=tokenizer_dims(folder),
      llm=presets.LlmDims(depth=8, width=48, heads=4, kv_heads=2, mlp=96, vocab=266),
      connector=presets.ConnectorDims(depth=6, queries=16),
      dit=sana_convert.from_config(config, positions=True),
      factor=10.6)


def unilip_rules(dims: presets.UnilipDims) -> list[engine.Rule]:
  """Rules of the UniLIP folder's layout."""
  head = modules.LatentHeadDims(dims.tokenizer.latent_depth, dims.llm.width, dims.tokenizer.latent_channels)
  by_module = {"vision_tower": dims.tokenizer.vit, "latent_head": head, "decoder": dims.tokenizer.decoder,
               "llm": dims.llm, "connector": dims.connector, "dit": dims.dit}
  return [rule for rules in unilip_convert.FOLDER.values() for rule in rules(by_module)]


@functools.cache
def unilip_params(folder: pathlib.Path):
  """{module: tree} of the recorded UniLIP folder."""
  tensors = safetensors_torch.load_file(folder / "ckpt/unilip_hf/model.safetensors")
  arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
  dims = unilip_dims(folder)
  model = unilip.Unilip(dims, jnp.float32)
  return engine.from_torch(
      arrays, unilip_rules(dims), jax.eval_shape(model.init, jax.random.key(0)))


def lpips_rules(dims: presets.VggDims, torch: str, path: str) -> list[engine.Rule]:
  """Rules of the recorded LPIPS, VGG's slices and heads as one module."""
  slices = perceptual.vgg_rules(dims, "", f"{path}vgg/")  # torchvision's layer numbers
  number = lambda rule: int(re.search(r"slice(\d)", rule.path)[1]) + 1
  return [*(dataclasses.replace(r, torch=f"{torch}net.slice{number(r)}.{r.torch}") for r in slices),
          *perceptual.lpips_heads(len(dims.channels), torch, path)]


def discriminator_rules(
    dims: presets.DiscriminatorDims, torch: str, path: str) -> list[engine.Rule]:
  """Rules of the recorded patch discriminator, which is never imported."""
  table = engine.conv(f"{torch}block_in.0", f"{path}conv_in")
  for i in range(len(dims.channels)):
    table += engine.conv(f"{torch}blocks.{i}.0", f"{path}conv_{i}")
    table += engine.norm(f"{torch}blocks.{i}.2", f"{path}norm_{i}")
  return [*table, *engine.conv(f"{torch}to_logits.0", f"{path}logits_in"),
          *engine.conv(f"{torch}to_logits.2", f"{path}logits_out")]
