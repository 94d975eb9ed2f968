"""The worked example of docs/extend.md: a new evaluator is one file and one row."""

import jax.numpy as jnp
import pytest

from tests import micro
from unilip_jax.common import registry
from unilip_jax.evals import base
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base

registry.register("evaluator", "mean_colour", "tests.extend.evaluator_example:make_evaluator")


class _Brighter(tasks_base.ReconstructsImages):
  """Reconstructs every image 3 levels brighter."""

  def reconstruct(self, params, pixels):
    return jnp.minimum(pixels.astype(jnp.int32) + 3, 255).astype(jnp.uint8)


_Brighter.__abstractmethods__ = frozenset()


def _evaluators(task, tmp_path, devices):
  config = micro.config(
      "stage1", image_size=112, eval__batch_size=8, data__render_dir=str(tmp_path),
      eval__sets=(("colours", "mean_colour", "shapes", "test", {"count": 11}),))
  return base.make_evaluators(config, task, mesh_lib.make_mesh(1, devices), str(tmp_path))


@pytest.mark.parametrize("devices", [8])
def test_a_new_evaluator_scores_every_example_once(tmp_path, devices):
  scores = _evaluators(_Brighter(), tmp_path, devices)["colours"]({})
  assert scores["colours/count"] == 11
  assert 2.5 < scores["colours/mean_colour"] <= 3.0  # white backgrounds are cut off at 255


def test_the_batch_size_matters_only_if_there_are_sets(tmp_path):
  config = micro.config("stage1", eval__batch_size=9, eval__sets=())
  mesh = mesh_lib.make_mesh(1, 8)
  assert base.make_evaluators(config, _Brighter(), mesh, str(tmp_path)) == {}
  config.eval.sets = (("colours", "mean_colour", "shapes", "test", {"count": 11}),)
  with pytest.raises(ValueError, match=r"eval.batch_size=9 does not divide over 8 devices"):
    base.make_evaluators(config, _Brighter(), mesh, str(tmp_path))


def test_a_task_that_it_does_not_suit_is_refused(tmp_path):
  class Other(tasks_base.Task):
    pass

  Other.__abstractmethods__ = frozenset()
  with pytest.raises(ValueError, match="reconstructs no images"):
    _evaluators(Other(), tmp_path, 8)
