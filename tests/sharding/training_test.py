"""Every stage gives the same on every mesh: loss, gradient norm, trained weights and samples.

One program a stage and mesh makes an update and samples; sizes are those of micro.py.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.data import batch as batch_lib
from unilip_jax.ops import cpu
from unilip_jax.sampling import images
from unilip_jax.sharding import activations, param_rules
from unilip_jax.sharding import mesh as mesh_lib

_ONE, _DATA, _FSDP, _BOTH = (1, 1), (8, 1), (1, 8), (2, 4)
_STAGES = ("stage1", "stage2", "stage448", "gen1", "gen2", "gen3", "tiny_mllm")
# On both axes at once those without a GAN also take their batch in micro-batches.
_ACCUMULATING = ("stage1", "gen1", "gen2", "gen3", "tiny_mllm")
# The others gather their weights once a step there.
_BY_LAYER = ("stage1", "gen3", "tiny_mllm")
_COMMON = dict(
    optimizer__warmup_steps=0, mesh__min_shard_size=16,
    # AdamW divides by |gradient|: where that is rounding noise, at 1e-8 its sign would decide the step.
    optimizer__eps=1e-3)


def _config(stage, **fields):
  fields = _COMMON | fields
  if stage == "stage1":
    return micro.config(stage, batch_size=16, loss__perceptual=1.1, **fields)
  if stage.startswith("stage"):
    gan = dict(gan__start_step=0, gan__warmup_steps=0)
    return micro.config(stage, batch_size=16, **gan | fields)
  if stage == "tiny_mllm":
    return micro.text_config(stage, batch_size=16, **fields)
  parts = dict(batch_size=16) if stage == "gen1" else dict(batch_size=32, data__part_multiple=16)
  return micro.text_config(
      stage, generate__noise_samples_per_image=2 if stage == "gen2" else 1, **parts | fields)


def _batch(task):
  config = task.config
  batch = batch_lib.synthetic(task.batch_spec(config.batch_size))  # without ids
  rng = np.random.default_rng(1)
  if "edit" in batch:
    batch["edit"]["tokens"][:, 5:9] = task.image_slot
  if "answer_mask" in batch:
    batch["tokens"][:, 3:7] = task.image_slot
    lengths = rng.integers(1, 30, (config.batch_size, 1))  # the weight of a token depends on them
    places = np.arange(batch["tokens"].shape[1])[None]
    batch["answer_mask"] = (places >= 12) & (places < 12 + lengths)
  return batch


def _sample(task, params, batch):
  """Computes the output of the stage for a batch."""
  if "answer_mask" in batch:
    return {"answer": task.answer(params, batch, max_new_tokens=3, stop=-1)[0]}
  if "image" in batch:
    return {"reconstruction": task.reconstruct(params, batch["image"])}
  part = batch["edit" if "edit" in batch else "t2i"]
  prompts = {k: part[k] for k in ("tokens", "token_mask", "cond_image") if k in part}
  dropped = {"tokens": jnp.roll(part["tokens"], 1, axis=1), "token_mask": part["token_mask"]}
  start = images.noise(0, 0, task.latent_shape(part["tokens"].shape[0]))
  if task.to_dcae:  # no decoder for these latents: one velocity instead of a sample
    context, mask = task.condition(params, part)
    return {"sample": task.model.velocity(params, start, start[:, 0, 0, 0], context, mask)}
  return {"sample": images.sample(
      task.model, params, prompts, dropped, prompts.get("cond_image"), start, steps=2,
      guidance=images.Guidance(2.0), image_slot=task.image_slot, factor=task.latent_scale,
      size=(task.config.image_size,) * 2)}


def _run(config, mesh_shape):
  """(metrics of two updates, weights after them, samples) on a mesh."""
  data, fsdp = mesh_shape
  mesh = mesh_lib.make_mesh(data, fsdp, jax.devices()[:data * fsdp])
  batch_lib.check_divides(config, mesh)
  task = tasks.make(config)
  state = task.make_state(micro.weights(task), np.uint32(0))
  shardings = param_rules.tree_shardings(state, mesh, config.mesh.min_shard_size)
  state = jax.device_put(state, shardings)
  batch = jax.device_put(_batch(task), mesh_lib.batch_sharding(mesh))

  def program(state, batch):
    state, metrics = task.train_step(state, batch)
    return state, metrics, _sample(task, task.model_params(state), batch)

  chex.clear_trace_counter()
  program = chex.assert_max_traces(activations.under(mesh, program), n=1)  # for both updates
  step = jax.jit(program, out_shardings=(shardings, None, None))
  seen = []
  for _ in range(2):
    state, metrics, sample = step(state, batch)
    seen.append({name: float(value) for name, value in metrics.items()})
  return seen, jax.device_get(state.params), jax.device_get(sample)


@functools.cache
def _reference(stage, **fields):
  return _run(_config(stage, **fields), _ONE)


def _assert_same(run, reference):
  for result, want in zip(run[0], reference[0]):
    assert result.keys() == want.keys()
    for name, value in want.items():
      np.testing.assert_allclose(result[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
  moved = tree.flatten(reference[1])
  for path, value in tree.flatten(run[1]).items():
    np.testing.assert_allclose(value, moved[path], rtol=1e-4, atol=2e-5, err_msg=path)
  for name, value in reference[2].items():
    result = run[2][name].astype(np.float64)
    if value.dtype == np.uint8:  # a value between two of them may round either way
      assert np.abs(result - value).max() <= 1, name
      assert np.abs(result - value).mean() < 0.01, name
    elif value.dtype == np.float32:
      np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-4 * np.abs(value).max())
    else:
      np.testing.assert_array_equal(result, value, err_msg=name)


@pytest.fixture(autouse=True)
def _micro(monkeypatch):
  micro.install(monkeypatch)
  monkeypatch.setattr(cpu, "_UNROLLED", 0)  # loops compile sooner


# In every run of the tests: each kind of step on both axes at once.
_ALWAYS = {("stage2", _BOTH), ("gen2", _BOTH), ("tiny_mllm", _BOTH)}
_CASES = [
    pytest.param(stage, mesh, id=f"{stage}-{mesh[0]}x{mesh[1]}",
                 marks=pytest.mark.slow if (stage, mesh) in _ALWAYS else pytest.mark.thorough)
    for stage in _STAGES for mesh in (_DATA, _FSDP, _BOTH)]


@pytest.mark.parametrize(("stage", "mesh"), _CASES)
def test_a_stage_is_the_same_on_every_mesh(stage, mesh):
  count = 2 if mesh == _BOTH and stage in _ACCUMULATING else 1
  gather = "step" if mesh == _BOTH and stage not in _BY_LAYER else "layer"
  config = _config(stage, grad_accum_steps=count, mesh__gather=gather)
  _assert_same(_run(config, mesh), _reference(stage))


@pytest.mark.thorough
def test_stage_2_without_a_gan_accumulates():
  _assert_same(_run(_config("stage2", gan__weight=0.0, grad_accum_steps=2), _BOTH),
               _reference("stage2", gan__weight=0.0))


def test_accumulation_is_refused_with_a_gan_and_where_it_does_not_divide():
  with pytest.raises(ValueError, match=r"grad_accum_steps=2 with a GAN: LeCam.*set grad_accum_steps=1"):
    tasks.make(_config("stage2", grad_accum_steps=2))
  with pytest.raises(ValueError, match="t2i=16 does not divide into grad_accum_steps=3"):
    tasks.make(_config("gen2", grad_accum_steps=3))
  with pytest.raises(ValueError, match="grad_accum_steps=0"):
    tasks.make(_config("stage1", grad_accum_steps=0))
