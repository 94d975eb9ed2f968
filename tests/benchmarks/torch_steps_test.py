"""PyTorch's training step computes the loss and gradient norm of JAX: only then is its time comparable."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks import steps, torch_steps, torch_training
from tests import micro, parity
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.models import presets

_REFERENCE = "PyTorch, transformers, diffusers"


@pytest.fixture(scope="module", autouse=True)
def preset():
  """The micro preset, with blocks in every stage of the decoder: diffusers supports no other."""
  micro_preset = micro.preset()
  decoder = dataclasses.replace(micro_preset.tokenizer.decoder, layers=(0, 1, 1, 1, 1, 1))
  found = dataclasses.replace(
      micro_preset, tokenizer=dataclasses.replace(micro_preset.tokenizer, decoder=decoder))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(presets, "get", lambda size: found)
    yield found


def _jax_step(config):
  """(task, modules, metrics of one step, the batch with its noise samples)."""
  task = tasks.make(config)
  quick = {"xla_backend_optimization_level": 0}  # LLVM's passes take most of the time, and change no result
  state = jax.jit(lambda key: task.make_state(task.init_modules(key), jnp.uint32(0)),
                  compiler_options=quick)(jax.random.key(0, impl="unsafe_rbg"))
  if "teacher" in state.frozen:  # as after some training, or distillation compares rounding
    teacher = jax.tree.map(lambda x: 1.2 * x, state.frozen["teacher"])
    state = state.replace(frozen=state.frozen | {"teacher": teacher})
  batch, complete = steps.make_batch(config, task.preset), None
  if config.task == "generate":
    complete = jax.device_get(jax.jit(task.prepare)(state, batch))
  _, metrics = jax.jit(task.train_step, compiler_options=quick)(state, batch)
  modules = tree.merge(state.params, state.frozen)
  if task.config.gan.weight:
    modules["discriminator"] = state.gan["params"]
  return task, jax.device_get(modules), jax.device_get(metrics), batch if complete is None else complete


def _assert_equal(metrics, torch_metrics, module):
  for name, value in torch_metrics.items():
    parity.assert_parity(f"{module}, {name}", _REFERENCE, metrics[name], value.numpy())


@pytest.mark.thorough  # as stage 448 below
@pytest.mark.parametrize(
    "variant", ["eager", "eager+whole", "eager+checkpointing", "eager+whole+checkpointing"])
def test_gen2_losses_and_gradient_norm_equal_those_of_jax(gen2, variant):
  task, modules, metrics, batch = gen2
  step = torch_steps.Generate(
      task.preset, task.config, torch_training.Variant.parse(variant), task.image_slot)
  torch_steps.load(step, modules, task.preset)
  _assert_equal(metrics, step(step.to_device(batch)), "gen2 step")


@pytest.fixture(scope="module")
def gen2(preset):
  return _jax_step(micro.text_config("gen2", generate__noise_samples_per_image=2))


@pytest.fixture(scope="module")
def stage448(preset):
  return _jax_step(micro.config("stage448", loss__perceptual=1.1, gan__start_step=0))


@pytest.mark.thorough  # of the benchmark: our own step is held to the recorded official one in tests/losses
@pytest.mark.parametrize("variant", ["eager", "eager+checkpointing"])
def test_stage_448_losses_and_gradient_norms_equal_those_of_jax(stage448, variant):
  task, modules, metrics, batch = stage448
  step = torch_steps.Reconstruct(task.preset, task.config, torch_training.Variant.parse(variant))
  torch_steps.load(step, modules, task.preset)
  _assert_equal(metrics, step(step.to_device(batch)), "stage 448 step")
