"""Understanding learns the answers and nothing else, at every published size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.configs import tiny_mllm
from unilip_jax.data import batch as batch_lib


@pytest.fixture(scope="module")
def task_and_state():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    task = tasks.make(micro.text_config(
        "tiny_mllm", optimizer__lr=3e-3, optimizer__warmup_steps=0, total_steps=1000))
    state = jax.jit(task.make_state)(micro.weights(task), jnp.uint32(0))
    yield task, state


def _batch(task, seed=0):
  batch = batch_lib.synthetic(task.batch_spec(4), seed)
  batch["tokens"][:, 3:7] = task.image_slot
  batch["answer_mask"] = np.zeros_like(batch["answer_mask"])
  batch["answer_mask"][:, 12:15] = True
  return batch


def test_the_loss_falls_on_one_batch(task_and_state):
  task, state = task_and_state
  step, batch, losses = jax.jit(task.train_step), _batch(task), []
  for _ in range(30):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.7 * losses[0]
  assert int(state.step) == 30


def test_only_answers_count(task_and_state):
  task, state = task_and_state
  batch = _batch(task)
  loss = jax.jit(lambda b: task._loss(state.params, state.frozen, task.prepare(state, b))[1]["loss"])
  other = dict(batch, tokens=batch["tokens"].copy())
  other["tokens"][:, 20:] = 1  # behind the answers: no influence at all
  np.testing.assert_allclose(loss(other), loss(batch), rtol=1e-6)
  other["tokens"][:, 13] = 1  # an answer
  assert abs(float(loss(other) - loss(batch))) > 1e-4


def test_long_answers_weigh_as_the_reduction_says(task_and_state):
  task, state = task_and_state
  batch = _batch(task)
  batch["answer_mask"][1, 12:28] = True  # 16 tokens to say, 3 in the other conversations
  said = np.asarray([3, 16, 3, 3])
  alone = None
  for reduction, power in (("sample", 1.0), ("token", 0.0), ("square", 0.5)):
    task.config.loss.reduction = reduction
    loss = jax.jit(lambda b: task._loss(state.params, state.frozen, task.prepare(state, b))[0])
    if alone is None:
      alone = [float(loss({k: v[i:i + 1].repeat(4, 0) for k, v in batch.items()})) for i in range(4)]
    weights = said * said**-power
    np.testing.assert_allclose(
        float(loss(batch)), (weights * alone).sum() / weights.sum(), rtol=1e-5)
  task.config.loss.reduction = "sample"


def test_an_unknown_reduction_is_refused(monkeypatch):
  micro.install(monkeypatch)
  with pytest.raises(ValueError, match="token, sample, square"):
    tasks.make(micro.text_config("tiny_mllm", loss__reduction="mean"))


def test_the_image_matters_through_its_slots(task_and_state):
  task, state = task_and_state
  batch = _batch(task)
  params = task.model_params(state)
  changed = dict(batch, cond_image=255 - batch["cond_image"])
  difference = np.abs(task.hidden(params, batch) - task.hidden(params, changed)).max((0, 2))
  assert difference[:3].max() < 1e-6, "nothing before the image may change"
  assert difference[3:].min() > 0


@pytest.mark.parametrize("size", ["1b", "3b"])
def test_a_step_traces_at_published_size(size, monkeypatch):
  config = tiny_mllm.get_config(size)
  task = tasks.make(config)
  monkeypatch.setattr(task, "_image_slot", 151_667)
  state = task.state_shapes()
  new, metrics = jax.eval_shape(micro.train_step(task), state, task.batch_spec(config.batch_size))
  assert jax.tree.map(lambda s: s.shape, new) == jax.tree.map(lambda s: s.shape, state)
  assert metrics["loss"].shape == ()
  counts = {"1b": 304_012_288 + 4_482_816, "3b": 304_012_288 + 8_662_016}
  assert tree.count({k: new.params[k] for k in ("vision_tower", "mlp1")}) == counts[size]
