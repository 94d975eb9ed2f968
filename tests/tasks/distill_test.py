"""Distillation to a few steps: the recorded losses through the task, its start, samples, what it saves."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from tests.losses import recorded
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.configs import few_step
from unilip_jax.data import batch as batch_lib
from unilip_jax.models import time_embedding, unilip

_METHODS = ("mean_flow", "consistency")


@pytest.fixture(scope="module", autouse=True)
def micro_preset():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    yield


def _task(method="mean_flow", **fields):
  return tasks.make(micro.text_config(
      "few_step", distill__method=method, generate__noise_samples_per_image=2, **dict(
          optimizer__warmup_steps=0, optimizer__lr=3e-3, total_steps=1000, ema_decay=0.0) | fields))


def _weights(task):
  """Those of `micro.weights`, but the parts that distillation adds start as they do in a run."""
  if task.config.distill.method == "mean_flow":
    own = {unilip.INTERVAL: time_embedding.init_interval(jax.random.key(2), task.preset.dit.width)}
  else:
    own = {"loss_weighting": {"kernel": jnp.zeros(time_embedding.FEATURES), "bias": jnp.zeros(())}}
  return micro.weights(task) | own


# The recorded losses below hold both methods in every run of the tests.
@pytest.fixture(scope="module", params=[
    "mean_flow", pytest.param("consistency", marks=pytest.mark.thorough)])
def run(request):
  """(task, state, compiled step, batch)."""
  task = _task(request.param)
  state = jax.jit(task.make_state)(_weights(task), jnp.uint32(0))
  batch = batch_lib.synthetic(task.batch_spec(task.config.batch_size), 0)
  batch["edit"]["tokens"][:, 5:9] = task.image_slot
  return task, state, jax.jit(task.train_step), batch


def test_the_error_falls_and_only_the_dit_and_its_new_parts_train(run):
  task, state, step, batch = run
  new = {"mean_flow": unilip.INTERVAL, "consistency": "loss_weighting"}[task.config.distill.method]
  assert set(state.params) == {"dit", new}
  assert "teacher" in state.frozen
  jax.tree.map(np.testing.assert_array_equal, state.frozen["teacher"], jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), state.params["dit"]))
  # Each update has times of its own: the mean of the first ones against that of the last ones.
  errors = []
  for _ in range(24):
    state, metrics = step(state, batch)
    errors.append(float(metrics["error"]))
  assert metrics["finite"] == 1
  assert np.mean(errors[-6:]) < np.mean(errors[:6])
  moved = [path for path, x in tree.flatten(state.params[new]).items() if np.abs(x).max() > 0]
  assert len(moved) == len(tree.flatten(state.params[new]))


def test_before_the_first_update_the_network_is_the_teacher_for_steps_of_any_length():
  task = _task()
  params = _weights(task)
  assert not any(np.any(x) for x in jax.tree.leaves(params[unilip.INTERVAL]["fc2"]))
  rng = np.random.default_rng(0)
  z = rng.standard_normal(task.latent_shape(3)).astype(np.float32)
  t = np.array([10.0, 500.0, 999.0], np.float32)
  context = rng.standard_normal((3, 5, task.model.dims.dit.caption_width)).astype(np.float32)
  mask = np.ones((3, 5), bool)
  at = jax.jit(lambda params, h: task.model.velocity(params, z, t, context, mask, h))
  teacher = at(params | {"dit": params["teacher"]}, None)
  for h in (0.0, 0.7):
    np.testing.assert_array_equal(at(params, np.full(3, h, np.float32)), teacher)
  other = jax.tree.map(lambda x: x + 0.1, params[unilip.INTERVAL])
  assert np.abs(at(params | {unilip.INTERVAL: other}, np.full(3, 0.7, np.float32)) - teacher).max() > 1e-3


def _toy(task, monkeypatch, latents, scalars, velocity):
  """Puts the recorded toy network, targets and teacher into a task."""
  networks = types.SimpleNamespace(velocity=lambda params, z, time, contexts, masks, h=None:
                                   recorded.network(params, z, scalars(time / 1000, h), contexts))
  monkeypatch.setattr(task, "model", networks)
  monkeypatch.setattr(task, "targets", lambda params, part: jnp.asarray(latents))
  monkeypatch.setattr(task, "_networks", velocity)


@pytest.mark.parametrize("name", ["plain", "default", "guided", "p075", "nodrop_unguided"])
def test_recorded_mean_flow_losses_through_the_task(monkeypatch, name):
  run, case = recorded.arrays("meanflow"), recorded.cases("meanflow_cases")[name]
  task = _task(distill__floor=case["norm_eps"], distill__power=case["norm_p"])
  context = run["context_table"][run[f"{name}/labels_used"]]
  teacher = lambda z, sigma: jnp.asarray(run[f"{name}/v_used"])
  _toy(task, monkeypatch, run["x"], lambda t, h: [t, h],
       lambda params, parts: (teacher, (jnp.asarray(context), None)))
  with jax.enable_x64(True):
    part = {"noise": run["noise"][:, None], "t": run[f"{name}/t"][:, None], "r": run[f"{name}/r"][:, None]}
    losses, errors = map(np.asarray, task._mean_flow_loss(
        recorded.weights("meanflow"), [jax.tree.map(jnp.asarray, part)]))
  np.testing.assert_allclose(losses.mean(), run[f"{name}/loss"], rtol=1e-9)
  np.testing.assert_allclose(errors * run["x"][0].size, run[f"{name}/squared_error"], rtol=1e-9)


@pytest.mark.parametrize(("name", "warmup"), [("start", 0.0), ("quarter", 0.25), ("full", 1.0)])
def test_recorded_consistency_errors_through_the_task(monkeypatch, name, warmup):
  """The recorded weighting is linear in σ; the task's, on sinusoids, is left at 0."""
  run = recorded.arrays("scm")
  task = _task("consistency")
  scale = run["cfg"][:, None, None, None]

  def teacher(z, sigma):
    weights = recorded.weights("scm", "teacher_")
    negative, positive = (recorded.network(weights, z, [sigma], run[k]) for k in ("null", "context"))
    return negative + scale * (positive - negative)

  _toy(task, monkeypatch, run["x0"], lambda t, h: [t, 0.1 * run["cfg"]],
       lambda params, parts: (teacher, (jnp.asarray(run["context"]), None)))
  with jax.enable_x64(True):
    part = {"noise": run["z"][:, None], "t": run["t"][:, None], "warmup": np.full((6, 1), warmup)}
    params = recorded.weights("scm", "student_") | {"loss_weighting": {
        "kernel": jnp.zeros(time_embedding.FEATURES), "bias": jnp.zeros(())}}
    losses, errors = map(
        np.asarray, task._consistency_loss(params, [jax.tree.map(jnp.asarray, part)]))
  np.testing.assert_allclose(errors.mean(), run[f"{name}/loss_without_weight"], rtol=1e-9)
  np.testing.assert_allclose(losses, errors / (0.5 * np.tan(run["t"])), rtol=1e-9)


@pytest.mark.parametrize("size", ["1b", "3b"])
@pytest.mark.parametrize("method", _METHODS)
def test_a_step_traces_at_published_size(size, method):
  config = few_step.get_config(size)
  config.distill.method, config.text.tokenizer = method, "shapes"
  task = tasks.make(config)
  state = task.state_shapes()
  new, metrics = jax.eval_shape(micro.train_step(task), state, task.batch_spec(config.batch_size))
  assert jax.tree.map(lambda s: s.shape, new) == jax.tree.map(lambda s: s.shape, state)
  assert metrics["loss"].shape == ()
