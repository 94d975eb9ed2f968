"""Guided sampling at 1b, from prompts to latents, equals that of transformers and diffusers."""

import jax
import numpy as np
import pytest
import torch

from benchmarks import torch_networks
from tests import golden_model, parity
from tests.fullsize import references
from unilip_jax.ops import flow_schedules
from unilip_jax.sampling import images

pytestmark = [pytest.mark.fullsize, pytest.mark.optimized]

_STEPS, _GUIDANCE = 3, 4.5


@torch.inference_mode()
def test_three_guided_solver_steps():
  reference = references.randomise(torch_networks.Unilip(references.GENERATOR))
  tokens, mask = references.prompts(2)  # the negative prompt, then the prompt
  start = references.normal(0, 1, 16, 16, 32)
  sampler = torch_networks.Sampler(reference, image_size=448, steps=_STEPS, guidance=_GUIDANCE)
  ids, seen, noise = references.tensors(tokens, mask, np.moveaxis(start, -1, 1).copy())
  context, valid = sampler.context(ids, seen)
  latents = sampler.solve(noise, context, valid).numpy()
  context, valid = context.numpy(), valid.numpy()
  params = references.generator_weights(reference)
  model = references.model()

  @jax.jit
  def run(params):
    value, seen = model.context(params, *model.prompt(params, tokens, mask, -1))
    velocity = images.guided(
        lambda *args: model.velocity(params, *args), model.cross_kv(params, value), seen,
        images.Guidance(_GUIDANCE))
    return value, images.solve(velocity, start, flow_schedules.solver("dpm", _STEPS))[0]

  condition, sampled = run(params)
  parity.assert_parity("LLM, queries, connector, projector", "transformers",
                       np.asarray(condition)[valid], context[valid])
  parity.assert_parity("three guided solver steps", "diffusers", sampled, golden_model.nhwc(latents))
