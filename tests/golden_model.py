"""The recorded official models as our dimensions and parameters."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import torch as safetensors_torch
import torch

from unilip_jax.convert import (
  rules,
  tables_dcae,
  tables_internvit,
  tables_latent_head,
  tables_projector,
  tables_qwen2,
  tables_sana,
)
from unilip_jax.models import presets, unilip


def dcae_dims(folder: pathlib.Path):
  """(encoder, decoder) of golden/pretrained/vae."""
  return tables_dcae.dims_from_config(
      json.loads((folder / "pretrained/vae/config.json").read_text()))


def tokenizer_dims(folder: pathlib.Path) -> presets.TokenizerDims:
  return presets.TokenizerDims(
      vit=presets.VitDims(depth=3, width=64, heads=4, mlp=128, patch=14, image_size=112),
      llm_width=48, latent_depth=3, decoder=dcae_dims(folder)[1])


def tokenizer_rules(dims: presets.TokenizerDims) -> list[rules.Rule]:
  """Rows of the `.pth` layout."""
  return [*tables_internvit.rules(dims.vit, "encoder.", "vision_tower/"),
          *tables_projector.rules("mlp1.", "mlp1/"),
          *tables_latent_head.rules(dims.latent_depth, "", "latent_head/"),
          *tables_dcae.decoder_rules(dims.decoder, "decoder.", "decoder/")]


@functools.cache
def torch_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The recorded `.pth`, float32."""
  state = torch.load(folder / "ckpt/tiny_unilip.pth", weights_only=True)
  return {name: tensor.float().numpy() for name, tensor in state.items()}


@functools.cache
def tokenizer_params(folder: pathlib.Path):
  """{module: tree} of the recorded tokenizer."""
  dims = tokenizer_dims(folder)
  return rules.from_torch(torch_tensors(folder), tokenizer_rules(dims), None)


@functools.cache
def dcae_encoder_params(folder: pathlib.Path):
  """Parameters of the encoder of golden/pretrained/vae."""
  tensors = safetensors_torch.load_file(
      folder / "pretrained/vae/diffusion_pytorch_model.safetensors")
  arrays = {k: v.float().numpy() for k, v in tensors.items() if k.startswith("encoder.")}
  return rules.from_torch(
      arrays, tables_dcae.encoder_rules(dcae_dims(folder)[0], "encoder.", ""), None)


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
      dit=tables_sana.dims_from_config(config, positions=True),
      factor=10.6)


def unilip_rules(dims: presets.UnilipDims) -> list[rules.Rule]:
  """Rows of the UniLIP folder's layout."""
  vae = "model.vae_decoder."
  return [*tables_internvit.rules(dims.tokenizer.vit, "model.vision_tower.", "vision_tower/"),
          *tables_projector.rules("model.multi_modal_projector.", "mlp1/"),
          *tables_latent_head.rules(dims.tokenizer.latent_depth, vae, "latent_head/"),
          *tables_dcae.decoder_rules(dims.tokenizer.decoder, f"{vae}decoder.", "decoder/"),
          *tables_qwen2.rules(dims.llm, "model.language_model.", "llm/", head="lm_head.weight"),
          *tables_qwen2.connector_rules(dims.llm, dims.connector),
          *tables_sana.rules(dims.dit, "model.dit.", "dit/")]


@functools.cache
def unilip_params(folder: pathlib.Path):
  """{module: tree} of the recorded UniLIP folder."""
  tensors = safetensors_torch.load_file(folder / "ckpt/unilip_hf/model.safetensors")
  arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
  dims = unilip_dims(folder)
  model = unilip.Unilip(dims, jnp.float32)
  return rules.from_torch(
      arrays, unilip_rules(dims), jax.eval_shape(model.init, jax.random.key(0)))
