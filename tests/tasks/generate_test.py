"""Generation steps: the recorded losses through the task, frozen parts, sizes, meshes, targets."""

import dataclasses
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_model, golden_prompts, micro, parity
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.configs import gen1, gen2, gen3
from unilip_jax.data import batch as batch_lib
from unilip_jax.models import presets
from unilip_jax.ops import image as image_ops
from unilip_jax.ops import seeds

_STAGES = {"gen1": gen1, "gen2": gen2, "gen3": gen3}
_TRAINED = {"gen1": {"queries", "connector", "projector"},
            "gen2": {"queries", "connector", "projector", "dit"},
            "gen3": {"queries", "connector", "projector", "dit"}}


@pytest.fixture
def micro_preset(monkeypatch):
  micro.install(monkeypatch)


def _task(stage, **fields):
  return tasks.make(micro.text_config(stage, **fields))


def _state(task):
  return jax.jit(task.make_state)(micro.weights(task), jnp.uint32(0))


@pytest.fixture(scope="module")
def gen2_run():
  """(task, state, compiled step) of gen2, for the tests that share them."""
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    task = _task("gen2", optimizer__lr=3e-3, optimizer__warmup_steps=0, total_steps=1000)
    yield task, _state(task), jax.jit(task.train_step)


def _batch(task, seed=0):
  batch = batch_lib.synthetic(task.batch_spec(task.config.batch_size), seed)
  if "edit" in batch:
    batch["edit"]["tokens"][:, 5:9] = task.image_slot
  return batch


@pytest.mark.parametrize("stage", _STAGES)
def test_only_what_the_stage_trains_has_gradients(micro_preset, stage):
  task = _task(stage)
  state = task.state_shapes()
  assert set(state.params) == _TRAINED[stage]
  assert not set(state.params) & set(state.frozen)
  moments = jax.tree.leaves(state.opt_state)
  assert sum(m.size for m in moments) == 2 * tree.count(state.params) + sum(
      m.size == 1 and m.ndim == 0 for m in moments)


def test_the_loss_falls_on_one_batch(gen2_run):
  task, state, step = gen2_run
  batch, losses = _batch(task), []
  for _ in range(25):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  assert metrics["finite"] == 1


def test_the_mixed_loss_is_the_mean_over_all_examples(gen2_run):
  task, state, step = gen2_run
  _, metrics = step(state, _batch(task))
  sizes = batch_lib.part_sizes(task.config)
  mean = sum(sizes[n] * float(metrics[f"{n}_loss"]) for n in sizes) / task.config.batch_size
  np.testing.assert_allclose(float(metrics["loss"]), mean, rtol=1e-6)


def test_every_seed_of_64_bits_has_noise_of_its_own(micro_preset):
  noises = set()
  for seed in (0, 1, 2**32 + 1, 2**64 - 1, -1):
    task = _task("gen2", seed=seed)
    words = seeds.words(seed)
    assert task.state_shapes().seed.shape == words.shape
    state = types.SimpleNamespace(seed=jnp.asarray(words), step=jnp.int32(2))
    noises.add(np.asarray(task.prepare(state, _batch(task))["t2i"]["noise"]).tobytes())
  assert len(noises) == 5
  with pytest.raises(ValueError, match=r"config.seed=.*a seed is an integer"):
    _task("gen2", seed=2**64).state_shapes()


def test_sub_batches_together_lose_what_each_loses_alone(gen2_run):
  """The DiT sees both at once: each must read its own prompts, times and noises."""
  task, state, step = gen2_run
  batch = _batch(task)
  _, metrics = step(state, batch)
  params = tree.merge(state.params, state.frozen)
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  for i, (name, part) in enumerate(sorted(batch.items())):  # as jit hands dicts on
    alone = jax.jit(task.losses)(params, part, jax.random.fold_in(key, i))
    np.testing.assert_allclose(float(metrics[f"{name}_loss"]), alone.mean(), rtol=1e-5)


def test_more_noise_samples_per_image_give_the_mean_of_their_losses(micro_preset, monkeypatch):
  """Times and noises of three samples, in one step and one after another."""
  rng = np.random.default_rng(0)
  count, shape = 8, (8, 2, 2, 32)
  times, noises = rng.normal(size=(3, count)), rng.normal(size=(3, *shape))
  params, seen = micro.weights(_task("gen2")), []
  for samples in (3, 1):
    task = _task("gen2", generate__noise_samples_per_image=samples)

    def losses(params, batch, *numbers, task=task):
      given = iter(numbers)
      monkeypatch.setattr(jax.random, "normal", lambda key, shape: next(given))
      return task.losses(params, batch, jax.random.key(0))

    losses, batch = jax.jit(losses), _batch(task)["t2i"]
    for i in range(3 // samples):
      # The samples of an example are neighbours.
      numbers = (times[i:i + samples].T.reshape(-1),
                 np.swapaxes(noises[i:i + samples], 0, 1).reshape(-1, *shape[1:]))
      seen.append(np.asarray(losses(params, batch, *(x.astype(np.float32) for x in numbers))))
  np.testing.assert_allclose(seen[0], np.mean(seen[1:], axis=0), rtol=1e-5)


def test_a_non_finite_batch_leaves_the_state_as_it_was(gen2_run):
  task, state, step = gen2_run
  broken = state.replace(params=state.params | {
      "projector": jax.tree.map(lambda x: x * jnp.inf, state.params["projector"])})
  new, metrics = step(broken, _batch(task))
  assert metrics["finite"] == 0
  assert int(new.step) == 0
  chex.assert_trees_all_equal(new.params, broken.params)


def test_the_dcae_target_equals_the_recorded_latents(golden, monkeypatch):
  vae = golden_model.dcae_dims(golden)[0]
  preset = dataclasses.replace(micro.preset(), dcae_encoder=vae)
  monkeypatch.setattr(presets, "get", lambda size: preset)
  arrays = np.load(golden / "gen_vae_stage1_latents.npz")
  task = _task("gen1", image_size=128)
  signed = golden_model.nhwc(arrays["gen_image"])
  pixels = np.rint((signed + 1) * 127.5).astype(np.uint8)
  np.testing.assert_allclose(pixels / 127.5 - 1, signed, atol=1e-6)
  params = {"encoder": golden_model.dcae_encoder_params(golden)}
  result = jax.jit(task.targets)(params, {"image": pixels})
  parity.assert_parity(
      "DC-AE target latents", "golden gen_vae_stage1_latents", result / task.latent_scale,
      golden_model.nhwc(arrays["latent_unscaled"]))
  assert task.latent_scale == pytest.approx(float(arrays["scaling_factor"]))


def test_recorded_edit_loss_through_the_task(golden, monkeypatch):
  """The task's own path from pixels and tokens to the loss, with the recorded times and noise."""
  preset = dataclasses.replace(
      micro.preset(), **{f.name: getattr(golden_model.unilip_dims(golden), f.name)
                         for f in dataclasses.fields(presets.UnilipDims) if f.name != "few_step"})
  monkeypatch.setattr(presets, "get", lambda size: preset)
  arrays = np.load(golden / "gen_train_ti2i.npz")
  prompts = golden_prompts.from_training(arrays["input_ids"], arrays["attention_mask"])
  task = _task("gen2", image_size=112, generate__noise_samples_per_image=1, generate__timestep_shift=1.0,
               text__tokenizer=str(golden / "ckpt/unilip_hf"))
  as_pixels = lambda x: np.rint(255 * (
      golden_model.nhwc(x) * image_ops.IMAGENET_STD + image_ops.IMAGENET_MEAN)).astype(np.uint8)
  batch = {"image": as_pixels(arrays["gen_image"]),
           "cond_image": as_pixels(arrays["und_image"])[:, None],
           "tokens": prompts.tokens, "token_mask": prompts.mask}
  u = np.float64(arrays["u"])
  numbers = iter([(np.log(u) - np.log1p(-u)).astype(np.float32),
                  golden_model.nhwc(arrays["noise"])])
  monkeypatch.setattr(jax.random, "normal", lambda key, shape: next(numbers))
  losses = jax.jit(task.losses)(golden_model.unilip_params(golden), batch, jax.random.key(0))
  parity.assert_parity("generation loss, from pixels", "golden gen_train_ti2i",
                       losses.mean(), arrays["loss"])


@pytest.mark.parametrize("size", ["1b", "3b"])
@pytest.mark.parametrize("stage", _STAGES)
def test_a_step_traces_at_published_size(size, stage, monkeypatch):
  config = _STAGES[stage].get_config(size)
  task = tasks.make(config)
  monkeypatch.setattr(task, "_image_slot", 151_667)
  state = task.state_shapes()
  new, metrics = jax.eval_shape(micro.train_step(task), state, task.batch_spec(config.batch_size))
  assert jax.tree.map(lambda s: s.shape, new) == jax.tree.map(lambda s: s.shape, state)
  assert metrics["loss"].shape == ()
  trained = {"1b": 89_475_200 + 229_376 + 2_066_688, "3b": 280_788_480 + 393_216 + 3_541_248}[size]
  if stage != "gen1":
    trained += {"1b": 591_747_872, "3b": 1_604_462_752}[size]
  assert tree.count(state.params) == trained


def test_sub_batches_are_in_proportion_and_cover_the_batch():
  config = gen2.get_config("1b")
  assert batch_lib.part_sizes(config) == {"t2i": 368, "edit": 144}
  config.batch_size = 16
  with pytest.raises(ValueError, match="sub-batches"):
    batch_lib.part_sizes(config)


@pytest.mark.parametrize(("fields", "message"), [
    (dict(generate__target="vae"), "generate.target"),
    (dict(generate__condition="all"), "choose both"),
    (dict(image_size=60), "multiple of 28"),
    ])
def test_settings_that_exclude_each_other_are_refused(micro_preset, fields, message):
  with pytest.raises(ValueError, match=message):
    _task("gen2", **fields)


def test_edits_are_refused_with_dcae_targets(micro_preset):
  with pytest.raises(ValueError, match="edit_share=0"):
    _task("gen1", data__edit_share=0.5)
