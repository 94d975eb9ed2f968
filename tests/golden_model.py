"""The recorded official tokenizer as our dimensions and parameters."""

import functools
import json
import pathlib

import numpy as np
import torch

from unilip_jax import presets
from unilip_jax.convert import (
  rules,
  tables_dcae,
  tables_internvit,
  tables_latent_head,
  tables_projector,
)


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


def nhwc(array: np.ndarray) -> np.ndarray:
  """NCHW -> NHWC."""
  return np.moveaxis(array, 1, -1)


def paths_by_torch_name(dims: presets.TokenizerDims) -> dict[str, str]:
  """torch name -> our path."""
  return {part.replace("{i}", str(i)): rule.path.replace("{i}", str(i))
          for rule in tokenizer_rules(dims) for part in rule.parts
          for i in range(max(1, rule.count))}
