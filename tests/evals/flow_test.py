"""The validation loss counts each example once, with its own prompt and with another's."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from tests.evals import fakes
from unilip_jax.data import pipeline
from unilip_jax.evals import flow
from unilip_jax.sharding import mesh as mesh_lib

_ROW = ("pairs", "flow_t2i", "shapes", "test", {"count": 11})


def _config(workdir):
  return micro.text_config(
      "gen2", eval__batch_size=8, eval__max_examples=11, data__render_dir=str(workdir / "data"))


_loss = fakes.prompt_loss


def test_the_mean_is_exact_and_the_wrong_prompt_is_the_next_example_s(tmp_path):
  config, mesh = _config(tmp_path), mesh_lib.make_mesh()
  evaluate = flow.make_evaluator(
      config, _ROW, task=types.SimpleNamespace(losses=_loss), mesh=mesh, workdir=str(tmp_path))
  scores = evaluate(jnp.float32(2.0))
  right, wrong = [], []
  for batch in pipeline.eval_batches(
      config, ("pairs", "native", *_ROW[2:]), process_index=0, process_count=1,
      workdir=str(tmp_path), example="t2i"):
    own = {k: batch[k][batch["_mask"]] for k in ("image", "tokens")}
    right.append(_loss(2.0, own, None))
    wrong.append(_loss(2.0, own | {"tokens": np.roll(own["tokens"], -1, axis=0)}, None))
  assert scores["pairs/count"] == 11
  np.testing.assert_allclose(scores["pairs/flow_loss"], np.concatenate(right).mean(), rtol=1e-5)
  np.testing.assert_allclose(
      scores["pairs/wrong_prompt_loss"], np.concatenate(wrong).mean(), rtol=1e-5)
  assert scores["pairs/flow_loss"] != scores["pairs/wrong_prompt_loss"]


@pytest.mark.parametrize(("mask", "expected"), [
    ((True, True, True), [1, 2, 0]),
    ((True, False, True, False), [2, 0]),
    ((False, True), [1]),
])
def test_pads_lend_no_prompt(mask, expected):
  mask = np.asarray(mask)
  np.testing.assert_array_equal(np.asarray(flow.next_valid(jnp.asarray(mask)))[mask], expected)


def test_a_task_without_the_loss_is_refused(tmp_path):
  with pytest.raises(ValueError, match="has no flow-matching loss"):
    flow.make_evaluator(_config(tmp_path), _ROW, task=object(), mesh=mesh_lib.make_mesh(),
                        workdir=str(tmp_path))


def test_the_loss_of_one_seed_repeats(tmp_path):
  config, mesh = _config(tmp_path), mesh_lib.make_mesh()
  noisy = lambda params, batch, key: _loss(params, batch, key) + jax.random.normal(key, (8,))
  evaluate = flow.make_evaluator(
      config, _ROW, task=types.SimpleNamespace(losses=noisy), mesh=mesh, workdir=str(tmp_path))
  assert evaluate(jnp.float32(1.0)) == evaluate(jnp.float32(1.0))
