"""The reconstruction step: what moves, what stands still, and its shapes at published size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.configs import stage1, stage2, stage448
from unilip_jax.data import batch as batch_lib
from unilip_jax.models import presets
from unilip_jax.tasks import reconstruct

_STAGES = {"stage1": stage1, "stage2": stage2, "stage448": stage448}
_VIT, _DECODER = 304_012_288, 159_223_171
_PUBLISHED = {  # trained parameters without the discriminator
    "1b": {"vision_tower": _VIT, "mlp1": 4_482_816, "latent_head": 4_859_200, "decoder": _DECODER},
    "3b": {"vision_tower": _VIT, "mlp1": 8_662_016, "latent_head": 14_227_520, "decoder": _DECODER}}


@pytest.fixture
def micro_preset(monkeypatch):
  preset = micro.preset()
  monkeypatch.setattr(presets, "get", lambda size: preset)


def _task_and_state(stage, **overrides):
  task = tasks.make(micro.config(stage, **overrides))
  state = jax.jit(lambda key: task.make_state(task.init_modules(key), jnp.uint32(0)))(
      jax.random.key(0))
  return task, state


def _batch(task, size=8):
  return batch_lib.device_part(batch_lib.synthetic(
      batch_lib.reconstruct_spec(size, task.config.image_size)))


@pytest.mark.parametrize("size", ["1b", "3b"])
@pytest.mark.parametrize("stage", list(_STAGES))
def test_published_size_traces_with_published_parameter_counts(stage, size):
  task = tasks.make(_STAGES[stage].get_config(size))
  modules = task.module_shapes
  counts = {name: tree.count(modules[name]) for name in reconstruct.AUTOENCODERS["unilip"]}
  assert counts == _PUBLISHED[size]
  state = task.state_shapes()
  trained = tree.count(state.params)
  expected = sum(counts.values())
  if stage == "stage1":
    expected -= counts["vision_tower"] + counts["mlp1"]
  assert trained == expected
  new, metrics = jax.eval_shape(task.train_step, state, task.batch_spec(32))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state)
  assert all(m.shape == () for m in metrics.values())


def test_stage1_moves_the_latent_head_and_decoder_only(micro_preset):
  task, state = _task_and_state("stage1", optimizer__warmup_steps=0)
  assert set(state.params) == {"latent_head", "decoder"}
  assert set(state.frozen) == {"vision_tower", "mlp1"}
  new, _ = jax.jit(task.train_step)(state, _batch(task))
  assert int(new.step) == 1
  jax.tree.map(np.testing.assert_array_equal, new.frozen, state.frozen)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), new.params, state.params)
  # The adaptive output of an unused path would stay; here every tensor feeds the image.
  assert all(jax.tree.leaves(moved)), [p for p, m in tree.flatten(moved).items() if not m]


def test_dcae_itself_trains_in_the_tokenizers_place(monkeypatch):
  tiny, small = presets.get("tiny"), dict(
      channels=(8, 8, 8, 16, 16, 32), head_dim=8, layers=(0, 1, 1, 1, 1, 1))
  preset = dataclasses.replace(
      micro.preset(), dcae_encoder=dataclasses.replace(tiny.dcae_encoder, **small),
      tokenizer=dataclasses.replace(micro.preset().tokenizer, decoder=dataclasses.replace(
          tiny.tokenizer.decoder, **small)))
  monkeypatch.setattr(presets, "get", lambda size: preset)
  task, state = _task_and_state("tiny_dcae", image_size=64, optimizer__warmup_steps=0)
  assert set(state.params) == {"encoder", "decoder"}
  step, losses = jax.jit(task.train_step), []
  for _ in range(8):
    state, metrics = step(state, _batch(task))
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0]
  rows = jax.jit(task.preview)(task.model_params(state), _batch(task))
  assert rows["reconstruction"].shape == rows["input"].shape
  with pytest.raises(ValueError, match=r"loss\.distill"):
    _task_and_state("tiny_dcae", image_size=64, loss__distill=1.0)
  with pytest.raises(ValueError, match="unilip, dcae"):
    _task_and_state("stage1", autoencoder="vae")


def _shapes_made(jaxpr) -> set[tuple[int, ...]]:
  """Shapes of every intermediate in a jaxpr and in the jaxprs inside it."""
  shapes = set()
  for eqn in jaxpr.eqns:
    shapes |= {tuple(v.aval.shape) for v in eqn.outvars}
    for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        shapes |= _shapes_made(inner)
  return shapes


def test_frozen_weights_have_no_gradient_in_the_jaxpr(micro_preset):
  made = {}
  for stage in ("stage1", "stage2"):
    task = tasks.make(micro.config(stage))
    state = task.state_shapes()
    jaxpr = jax.make_jaxpr(task.train_step)(state, _batch(task)).jaxpr
    made[stage] = _shapes_made(jaxpr)
    modules = state.frozen if stage == "stage1" else state.params
    qkv = modules["vision_tower"]["layers"]["attn"]["qkv"]["kernel"].shape
  assert qkv in made["stage2"], "the probe must see the gradient where there is one"
  assert qkv not in made["stage1"]


def test_discriminator_stands_still_until_its_start(micro_preset):
  task, state = _task_and_state("stage2", gan__start_step=2, gan__warmup_steps=0)
  step = jax.jit(task.train_step)
  first_gan = state.gan
  for _ in range(2):
    state, metrics = step(state, _batch(task))
    assert metrics["gan_loss"] == 0
    assert metrics["discriminator_loss"] == 0
  jax.tree.map(np.testing.assert_array_equal, state.gan, first_gan)
  state, metrics = step(state, _batch(task))
  assert metrics["gan_loss"] != 0
  assert metrics["discriminator_loss"] > 0
  assert int(state.gan["updates"]) == 1
  assert not np.array_equal(
      tree.flatten(state.gan["params"])[next(iter(tree.flatten(state.gan["params"])))],
      tree.flatten(first_gan["params"])[next(iter(tree.flatten(first_gan["params"])))])
  assert step._cache_size() == 1, "the discriminator's start must not compile a second program"


def test_clip_tower_learns_at_a_tenth_of_the_rate(micro_preset):
  task, _ = _task_and_state("stage2")
  rates = {path.split("/")[0]: c.lr for path, c in task.columns.items()}
  assert rates == {"vision_tower": 0.1, "mlp1": 0.1, "latent_head": 1.0, "decoder": 1.0}


def test_teacher_is_the_tower_that_stage_1_kept_frozen(micro_preset):
  task, state = _task_and_state("stage2")
  teacher = {"vision_tower": {"x": 1}, "mlp1": {"x": 2}}
  assert task.fill_missing_modules(teacher)["teacher"] == teacher
  original = {"vision_tower": {"x": 0}}
  assert task.fill_missing_modules(teacher | {"teacher": original})["teacher"] == original
  np.testing.assert_array_equal(
      state.frozen["teacher"]["vision_tower"]["pos_embed"],
      state.params["vision_tower"]["pos_embed"])
  _, metrics = jax.jit(task.train_step)(state, _batch(task))
  assert metrics["distill_loss"] < 1e-10  # two programs of one network: rounding is left


def test_non_finite_loss_leaves_the_state_as_it_was(micro_preset):
  task, state = _task_and_state("stage2", gan__start_step=0)
  state.params["decoder"]["conv_in"]["bias"] = jnp.full_like(
      state.params["decoder"]["conv_in"]["bias"], jnp.inf)
  new, metrics = jax.jit(task.train_step)(state, _batch(task))
  assert metrics["finite"] == 0
  assert not np.isfinite(metrics["reconstruction_loss"])
  jax.tree.map(np.testing.assert_array_equal, new, state)


def test_ema_copies_then_averages(micro_preset):
  task, state = _task_and_state("stage1", optimizer__warmup_steps=0, ema_decay=0.5)
  step = jax.jit(task.train_step)
  first, _ = step(state, _batch(task))
  jax.tree.map(np.testing.assert_array_equal, first.ema, first.params)
  second, _ = step(first, _batch(task))
  weight = 2 / 11  # (1 + t) / (10 + t) at t = 1
  jax.tree.map(lambda e, e1, p2: np.testing.assert_allclose(
      e, weight * e1 + (1 - weight) * p2, rtol=1e-5, atol=1e-7), second.ema, first.ema, second.params)


def test_image_sizes_that_tokens_do_not_tile_are_refused():
  config = stage1.get_config("1b")
  config.image_size = 250
  with pytest.raises(ValueError, match="not a multiple of 28.*choose 252"):  # noqa: RUF043
    tasks.make(config)
