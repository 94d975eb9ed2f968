"""The benchmarks' PyTorch model computes the same as the JAX model: only then is its time comparable."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks import torch_networks
from tests import golden_model, micro, parity
from unilip_jax.models import unilip
from unilip_jax.ops import flow_schedules
from unilip_jax.ops import image as image_ops
from unilip_jax.sampling import images

_SLOT = 5


@pytest.fixture(scope="module")
def pair():
  """(JAX networks, their parameters, the PyTorch model with the same ones)."""
  dims = micro.preset().unilip
  # diffusers supports no empty stage but the outermost.
  decoder = dataclasses.replace(dims.tokenizer.decoder, layers=(0, 1, 1, 1, 1, 1))
  model = unilip.Unilip(dataclasses.replace(
      dims, tokenizer=dataclasses.replace(dims.tokenizer, decoder=decoder)), jnp.float32)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32),
      jax.eval_shape(model.init, jax.random.key(0)))
  params["llm"]["embedding"][dims.llm.vocab:] = 0
  torch_model = torch_networks.Unilip(model.dims).eval().requires_grad_(False)
  torch_networks.load(torch_model, params)
  return model, params, torch_model


def _prompts(with_image: bool):
  tokens = np.random.default_rng(0).integers(6, 400, (2, 12)).astype(np.int32)
  if with_image:
    tokens[:, 3:7] = _SLOT
  return tokens, np.arange(12)[None] < np.array([[12], [9]])


@pytest.mark.parametrize(
    "with_image", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_pytorch_samples_the_same_image(pair, with_image):
  model, params, torch_model = pair
  tokens, mask = _prompts(with_image)
  pixels = None
  if with_image:
    pixels = np.random.default_rng(1).integers(0, 256, (1, 1, 56, 56, 3)).astype(np.uint8)
  start = np.random.default_rng(2).standard_normal((1, 2, 2, 32)).astype(np.float32)

  @jax.jit
  def run(params):
    features = model.pixel_features(params, pixels)
    both = None if features is None else jnp.repeat(features, 2, axis=0)
    states, cache = model.prompt(params, tokens, mask, _SLOT, both)
    context, context_mask = model.context(params, states, cache)
    velocity = images.guided(
        lambda *args: model.velocity(params, *args), context, context_mask, images.Guidance(3.0))
    latents, _ = images.solve(velocity, start, flow_schedules.solver("dpm", 3))
    return both, context, latents, model.decode(params, latents / model.dims.factor, (56, 56))

  features, context, latents, unit = run(params)
  torch_sampler = torch_networks.Sampler(torch_model, image_size=56, steps=3, guidance=3.0)
  tensors = [torch.from_numpy(x) for x in (tokens.astype(np.int64), mask)]
  torch_features = None if features is None else torch_sampler.features(
      torch.from_numpy(pixels[:, 0])).repeat(2, 1, 1)
  with torch.inference_mode():
    torch_context, _ = torch_model.context(*tensors, _SLOT, torch_features)
  valid = np.concatenate([mask, np.ones((2, 4), bool)], axis=1)
  parity.assert_parity("benchmarks, context", "transformers",
                       np.asarray(context)[valid], torch_context.numpy()[valid])
  noise = torch.from_numpy(start).permute(0, 3, 1, 2)
  with torch.inference_mode():
    torch_latents = torch_sampler.solve(noise, torch_context, torch.from_numpy(valid))
    pixels_of_torch = torch_sampler.decode(torch_latents)
  parity.assert_parity("benchmarks, latents", "diffusers",
                       latents, golden_model.nhwc(torch_latents.numpy()), rtol=1e-3)
  expected = image_ops.pixels_from_unit(unit)
  assert np.abs(pixels_of_torch.numpy().astype(int) - np.asarray(expected)).max() <= 1


def test_pytorch_solves_the_same_without_guidance(pair):
  model, params, torch_model = pair
  rng = np.random.default_rng(3)
  context = rng.standard_normal((2, 9, model.dims.dit.caption_width)).astype(np.float32)
  mask = np.arange(9)[None] < np.array([[9], [6]])
  start = rng.standard_normal((2, 2, 2, 32)).astype(np.float32)

  @jax.jit
  def run(params):
    velocity = lambda z, time: model.velocity(params, z, jnp.full(2, time), context, mask)
    return images.solve(velocity, start, flow_schedules.solver("dpm", 4))[0]

  torch_sampler = torch_networks.Sampler(torch_model, image_size=56, steps=4, guidance=1.0)
  with torch.inference_mode():
    expected = torch_sampler.solve(
        torch.from_numpy(start).permute(0, 3, 1, 2), torch.from_numpy(context), torch.from_numpy(mask))
  parity.assert_parity("benchmarks, latents without guidance", "diffusers",
                       run(params), golden_model.nhwc(expected.numpy()), rtol=1e-3)
