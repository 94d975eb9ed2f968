"""Sampling equals the recorded official runs step by step; samples depend on their own seed alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_model, golden_prompts, micro, parity
from unilip_jax.models import unilip
from unilip_jax.ops import flow_schedules
from unilip_jax.ops import image as image_ops
from unilip_jax.sampling import images
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import param_rules
from unilip_jax.training import flops


@pytest.fixture(scope="module")
def model(golden):
  return unilip.Unilip(golden_model.unilip_dims(golden), jnp.float32)


@pytest.fixture(scope="module")
def params(golden):
  return golden_model.unilip_params(golden)


@pytest.fixture(scope="module")
def official(model):
  """The official sample as one program for each of prompts and edits: (trajectory, image in [0, 1])."""
  @jax.jit
  def run(params, tokens, mask, features, start):
    states, cache = model.prompt(params, tokens, mask, golden_prompts.IMAGE_TOKEN, features)
    context, context_mask = model.context(params, states, cache)
    velocity = images.guided(
        lambda *args: model.velocity(params, *args), model.cross_kv(params, context), context_mask,
        images.Guidance(4.5))
    latents, trajectory = images.solve(velocity, start, flow_schedules.solver("dpm", 20))
    decoded = model.tokenizer.apply(
        {"params": params}, latents / model.dims.factor, method=lambda m, z: m.decoder(z))
    unit = image_ops.unit_from_signed(jnp.clip(decoded, -1, 1))
    return trajectory, image_ops.resize_bilinear(unit, 112, 112)

  return run


def _inputs(model, params, arrays):
  """Prompts, features of the image to edit or None, and the noise of a recording."""
  prompts = golden_prompts.from_sampling(arrays["input_ids"], arrays["attention_mask"])
  # Recorded rows are (prompt, negative); the sampler takes the negative ones first.
  tokens, mask = prompts.tokens[::-1].copy(), prompts.mask[::-1].copy()
  features = None
  if (tokens == golden_prompts.IMAGE_TOKEN).any():
    unit = image_ops.unit_from_imagenet(jnp.asarray(golden_model.nhwc(arrays["pixel_values"])))
    features = jnp.repeat(jax.jit(model.features)(params, unit[:, None]), 2, axis=0)
  return tokens, mask, features, golden_model.nhwc(arrays["initial_latents"])


@pytest.mark.parametrize("kind", ["t2i_leftpad", "t2i_rightpad", "edit_leftpad", "edit_rightpad"])
def test_every_step_and_the_image_equal_the_recorded_ones(golden, model, params, official, kind):
  arrays = dict(np.load(golden / f"generate_{kind}.npz"))
  other = np.load(golden / f"generate_{kind.replace('right', 'left')}.npz")
  for name in ("initial_latents", "pixel_values"):  # recorded once
    if name in other:
      arrays.setdefault(name, other[name])
  trajectory, image = official(params, *_inputs(model, params, arrays))
  parity.assert_recorded("sampled latents", f"golden generate_{kind}", trajectory[:, 0],
                         golden_model.nhwc(arrays["latents_per_step"]), rtol=1e-3)
  np.testing.assert_allclose(
      parity.like(image[0], arrays["image"]), arrays["image"], atol=1 / 255)


def test_guidance_1_follows_the_prompt_alone():
  context = jnp.stack([jnp.zeros((3, 2)), jnp.ones((3, 2))])
  velocity = lambda x, t, c, m: x * 0 + c.mean((1, 2))[:, None, None, None]
  at = lambda g: images.guided(velocity, context, jnp.ones((2, 3), bool), images.Guidance(g))(
      jnp.zeros((1, 2, 2, 1)), jnp.float32(1.0))
  np.testing.assert_allclose(at(1.0), 1.0)
  np.testing.assert_allclose(at(0.0), 0.0)
  np.testing.assert_allclose(at(4.5), 4.5)


def test_without_negative_prompts_samples_are_those_of_guidance_1(golden, model, params):
  arrays = np.load(golden / "generate_t2i_leftpad.npz")
  prompts = golden_prompts.from_sampling(arrays["input_ids"], arrays["attention_mask"])
  positive, negative = ({"tokens": prompts.tokens[i:i + 1], "token_mask": prompts.mask[i:i + 1]}
                        for i in range(2))
  z = golden_model.nhwc(arrays["initial_latents"])

  @jax.jit
  def run(params):
    at = lambda negative: images.prompted(
        model, params, positive, negative, None, image_slot=golden_prompts.IMAGE_TOKEN,
        guidance=images.Guidance(1.0))(z, jnp.float32(700))
    return at(None), at(negative)

  alone, doubled = run(params)
  np.testing.assert_allclose(alone, doubled, rtol=1e-5, atol=1e-5)


def test_guidance_applies_inside_of_its_interval_alone():
  model = unilip.Unilip(micro.preset().unilip, jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0))
  prompts = lambda n: {"tokens": jnp.zeros((n, 8), jnp.int32), "token_mask": jnp.ones((n, 8), bool)}
  jaxpr = str(jax.make_jaxpr(lambda params, z: images.prompted(
      model, params, prompts(2), prompts(1), None, image_slot=5,
      guidance=images.Guidance(2.0, interval=(0.2, 0.8)))(z, jnp.float32(700)))(
          params, jnp.zeros((2, 2, 2, 32))))
  assert "cond[" in jaxpr
  inside = images.within((0.2, 0.8), lambda z, t: z + 1, lambda z, t: z - 1)
  at = [float(inside(jnp.zeros(()), jnp.float32(t))) for t in (100, 200, 500, 800, 900)]
  assert at == [-1, 1, 1, 1, -1]


def test_rescaled_guidance_is_that_of_diffusers():
  """As diffusers' rescale_noise_cfg; its deviations divide by n − 1, which cancels."""
  rng = np.random.default_rng(0)
  out = rng.standard_normal((4, 3, 3, 2)).astype(np.float32)
  at = lambda phi: images.guided(
      lambda x, t, c, m: jnp.asarray(out), jnp.zeros((4, 1, 1)), jnp.ones((4, 1), bool),
      images.Guidance(5.0, rescale=phi))(jnp.zeros((2, 3, 3, 2)), jnp.float32(1))
  guided = out[:2] + 5.0 * (out[2:] - out[:2])
  std = lambda x: x.std((1, 2, 3), ddof=1, keepdims=True)
  rescaled = guided * std(out[2:]) / std(guided)
  for phi in (0.0, 0.7, 1.0):
    np.testing.assert_allclose(at(phi), phi * rescaled + (1 - phi) * guided, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(at(None), guided)


def test_noise_of_a_sample_depends_on_seed_and_index_alone():
  whole = images.noise(3, 0, (5, 2, 2, 4))
  np.testing.assert_array_equal(whole[2:4], images.noise(3, 2, (2, 2, 2, 4)))
  assert np.abs(whole - images.noise(4, 0, (5, 2, 2, 4))).min() > 0
  assert abs(float(images.noise(0, 0, (64, 4, 4, 32)).std()) - 1) < 0.02


def test_prompts_run_once_and_both_halves_of_guidance_share_a_batch():
  """By FLOPs: a step costs one DiT pass over the doubled batch that does not read the prompts again.

  Without negative prompts it costs half.
  """
  count, length = 3, 8
  model = unilip.Unilip(micro.preset().unilip, jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0))
  prompts = lambda n: {"tokens": jnp.zeros((n, length), jnp.int32),
                       "token_mask": jnp.ones((n, length), bool)}
  spec = jax.ShapeDtypeStruct
  start = spec((count, 2, 2, 32), jnp.float32)

  def work(steps, negatives):
    return flops.count(lambda params, start: images.sample(
        model, params, prompts(count), prompts(negatives) if negatives else None, None, start,
        image_slot=5, factor=1.0,
        size=(56, 56), steps=steps,
        guidance=images.Guidance(2.0)), params, start)

  seen = length + model.dims.connector.queries
  context = spec((2 * count, seen, model.dims.dit.caption_width), jnp.float32)
  cross_kv = jax.eval_shape(model.cross_kv, params, context)
  latents = (spec((2 * count, 2, 2, 32), jnp.float32), spec((2 * count,), jnp.float32))
  mask = spec((2 * count, seen), bool)
  step = flops.count(model.velocity, params, *latents, cross_kv, mask)
  reading = flops.count(model.cross_kv, params, context)
  assert flops.count(model.velocity, params, *latents, context, mask) == step + reading
  assert work(7, count) - work(2, count) == 5 * step
  assert work(7, 1) - work(2, 1) == 5 * step
  assert work(7, 0) - work(2, 0) == 5 * step / 2
  prompt = (work(2, count) - work(2, 1)) / (count - 1)
  assert prompt > 0
  assert work(2, count) > 2 * step + 2 * count * prompt


def test_samples_agree_across_meshes(golden, model, params):
  arrays = np.load(golden / "generate_t2i_leftpad.npz")
  prompts = golden_prompts.from_sampling(arrays["input_ids"], arrays["attention_mask"])
  tokens = np.repeat(prompts.tokens[:1], 4, 0)
  mask = np.repeat(prompts.mask[:1], 4, 0)

  def run(params, tokens, mask, start):
    states, cache = model.prompt(params, tokens, mask, golden_prompts.IMAGE_TOKEN)
    context, context_mask = model.context(params, states, cache)
    cross_kv = model.cross_kv(params, context)
    velocity = lambda x, t: model.velocity(
        params, x, jnp.broadcast_to(t, x.shape[:1]), cross_kv, context_mask)
    return images.solve(velocity, start, flow_schedules.solver("dpm", 6))[0]

  start = images.noise(0, 0, (4, 4, 4, 32))
  one = jax.jit(run)(params, tokens, mask, start)
  mesh = mesh_lib.make_mesh(2, 2, jax.devices()[:4])
  put = lambda tree, shardings: jax.tree.map(jax.device_put, tree, shardings)
  shardings = param_rules.tree_shardings(
      jax.eval_shape(lambda: params), mesh, 1024)
  batch = jax.tree.map(lambda x: jax.device_put(x, mesh_lib.batch_sharding(mesh)), (tokens, mask, start))
  four = jax.jit(run)(put(params, shardings), *batch)
  np.testing.assert_allclose(four, one, rtol=1e-3, atol=1e-3)
