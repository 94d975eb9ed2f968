"""The reconstruction step: what moves, what stands still, and its shapes at published size."""

import dataclasses

import chex
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
from unilip_jax.ops import backend
from unilip_jax.tasks import reconstruct
from unilip_jax.training import flops

_STAGES = {"stage1": stage1, "stage2": stage2, "stage448": stage448}
_VIT, _DECODER = 304_012_288, 159_223_171
_PUBLISHED = {  # trained parameters without the discriminator
    "1b": {"vision_tower": _VIT, "mlp1": 4_482_816, "latent_head": 4_859_200, "decoder": _DECODER},
    "3b": {"vision_tower": _VIT, "mlp1": 8_662_016, "latent_head": 14_227_520, "decoder": _DECODER}}


@pytest.fixture(scope="module", autouse=True)
def micro_preset():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    yield


def _task_and_state(stage, **overrides):
  task = tasks.make(micro.config(stage, **overrides))
  state = jax.jit(task.make_state)(micro.weights(task), jnp.uint32(0))
  return task, state


@pytest.fixture(scope="module")
def stage1_run(micro_preset):
  """(task, first state, the states after two updates) of stage 1 with a short EMA."""
  task, state = _task_and_state("stage1", optimizer__warmup_steps=0, ema_decay=0.5)
  step = jax.jit(task.train_step)
  first, _ = step(state, _batch(task))
  second, _ = step(first, _batch(task))
  return task, state, first, second


@pytest.fixture(scope="module")
def stage2_run(micro_preset):
  """(task, compiled step, states and metrics of three updates); the discriminator starts in the third.

  A second trace of the step is an error: the discriminator's start must not compile a second program.
  """
  task, state = _task_and_state("stage2", gan__start_step=2, gan__warmup_steps=0)
  step, states, metrics = jax.jit(chex.assert_max_traces(task.train_step, n=1)), [state], []
  for _ in range(3):
    state, values = step(state, _batch(task))
    states.append(state)
    metrics.append(values)
  return task, step, states, metrics


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
  new, metrics = jax.eval_shape(micro.train_step(task), state, task.batch_spec(32))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state)
  assert all(m.shape == () for m in metrics.values())


@pytest.mark.parametrize(("whole", "networks", "expected"), [
    ("float32", "high", {"HIGH", "HIGHEST"}),  # of the loss, of attention in the trained networks
    ("bfloat16", "high", {"DEFAULT", "HIGHEST"})])  # the last of multiplications that only move values
def test_networks_of_the_loss_have_their_own_precision_if_the_run_is_in_float32(whole, networks, expected):
  task = tasks.make(micro.config(
      "stage2", loss__perceptual=1.1, gan__weight=0.0, dtype="bfloat16", float32_matmul_precision=whole,
      loss__float32_matmul_precision=networks))
  state, found = task.state_shapes(), set()
  image = jax.ShapeDtypeStruct((2, micro.IMAGE_SIZE, micro.IMAGE_SIZE, 3), jnp.float32)

  def look(eqn, count):
    if all(v.aval.dtype == jnp.float32 for v in eqn.invars):
      found.add(eqn.params["precision"][0].name)
    return count

  with backend.planning("tpu"), jax.default_matmul_precision(whole):
    gradient = jax.grad(task.generator_loss, has_aux=True)
    flops.count_jaxpr(jax.make_jaxpr(gradient)(state.params, state, image), look)
  assert found == expected


def test_stage1_moves_the_latent_head_and_decoder_only(stage1_run):
  _, state, new, _ = stage1_run
  assert set(state.params) == {"latent_head", "decoder"}
  assert set(state.frozen) == {"vision_tower", "mlp1"}
  assert int(new.step) == 1
  chex.assert_trees_all_equal(new.frozen, state.frozen)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), new.params, state.params)
  # The adaptive output of an unused path would stay; here every tensor feeds the image.
  assert all(jax.tree.leaves(moved)), [p for p, m in tree.flatten(moved).items() if not m]


def test_dcae_itself_trains_instead_of_the_tokenizer(monkeypatch):
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
  pixels = _batch(task)["image"]
  assert jax.jit(task.reconstruct)(task.model_params(state), pixels).shape == pixels.shape
  with pytest.raises(ValueError, match=r"loss\.distill"):
    _task_and_state("tiny_dcae", image_size=64, loss__distill=1.0)
  with pytest.raises(ValueError, match="unilip, dcae"):
    _task_and_state("stage1", autoencoder="vae")


def _intermediate_shapes(jaxpr) -> set[tuple[int, ...]]:
  """Shapes of every intermediate in a jaxpr and in the jaxprs inside it."""
  shapes = set()
  for eqn in jaxpr.eqns:
    shapes |= {tuple(v.aval.shape) for v in eqn.outvars}
    for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        shapes |= _intermediate_shapes(inner)
  return shapes


def test_frozen_weights_have_no_gradient_in_the_jaxpr():
  shapes = {}
  for stage in ("stage1", "stage2"):
    task = tasks.make(micro.config(stage))
    state = task.state_shapes()
    jaxpr = jax.make_jaxpr(task.train_step)(state, _batch(task)).jaxpr
    shapes[stage] = _intermediate_shapes(jaxpr)
    modules = state.frozen if stage == "stage1" else state.params
    qkv = modules["vision_tower"]["layers"]["attn"]["qkv"]["kernel"].shape
  assert qkv in shapes["stage2"], "the probe must see the gradient where there is one"
  assert qkv not in shapes["stage1"]


def test_the_discriminator_does_not_move_before_its_start(stage2_run):
  _, _, states, metrics = stage2_run
  for values in metrics[:2]:
    assert values["gan_loss"] == 0
    assert values["discriminator_loss"] == 0
  chex.assert_trees_all_equal(states[2].gan, states[0].gan)
  assert metrics[2]["gan_loss"] != 0
  assert metrics[2]["discriminator_loss"] > 0
  assert int(states[3].gan["updates"]) == 1
  before, after = (tree.flatten(s.gan["params"]) for s in (states[0], states[3]))
  assert not np.array_equal(*(flat[next(iter(flat))] for flat in (before, after)))


def test_the_clip_tower_learns_at_a_tenth_of_the_rate(stage2_run):
  rates = {path.split("/")[0]: c.lr for path, c in stage2_run[0].columns.items()}
  assert rates == {"vision_tower": 0.1, "mlp1": 0.1, "latent_head": 1.0, "decoder": 1.0}


def test_the_teacher_is_the_tower_that_stage_1_kept_frozen(stage2_run):
  task, _, states, metrics = stage2_run
  teacher = {"vision_tower": {"x": 1}, "mlp1": {"x": 2}}
  assert task.fill_missing_modules(teacher)["teacher"] == teacher
  original = {"vision_tower": {"x": 0}}
  assert task.fill_missing_modules(teacher | {"teacher": original})["teacher"] == original
  np.testing.assert_array_equal(
      states[0].frozen["teacher"]["vision_tower"]["pos_embed"],
      states[0].params["vision_tower"]["pos_embed"])
  assert metrics[0]["distill_loss"] < 1e-10  # two programs of one network: rounding is left


def test_a_non_finite_loss_leaves_the_state_as_it_was(stage2_run):
  task, step, states, _ = stage2_run
  state = states[3]  # the discriminator runs
  flat, bias = tree.flatten(state.params), "decoder/conv_in/bias"
  broken = state.replace(params=tree.unflatten(flat | {bias: jnp.full_like(flat[bias], jnp.inf)}))
  new, metrics = step(broken, _batch(task))
  assert metrics["finite"] == 0
  assert not np.isfinite(metrics["reconstruction_loss"])
  chex.assert_trees_all_equal(new, broken)


def test_ema_copies_then_averages(stage1_run):
  _, _, first, second = stage1_run
  chex.assert_trees_all_equal(first.ema, first.params)
  weight = 2 / 11  # (1 + t) / (10 + t) at t = 1
  chex.assert_trees_all_close(
      second.ema, jax.tree.map(lambda e, p: weight * e + (1 - weight) * p, first.ema, second.params),
      rtol=1e-5, atol=1e-7)


def test_image_sizes_that_tokens_do_not_tile_are_refused():
  config = stage1.get_config("1b")
  config.image_size = 250
  with pytest.raises(ValueError, match="not a multiple of 28.*choose 252"):  # noqa: RUF043
    tasks.make(config)
