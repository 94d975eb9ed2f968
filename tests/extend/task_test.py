"""The worked example of docs/extend.md: a new task is one file, one row and a config."""

import chex
import numpy as np

from tests import micro
from unilip_jax import train
from unilip_jax.common import registry
from unilip_jax.training import metrics
from unilip_jax.weights import sources

registry.register("task", "compress_features", "tests.extend.task_example:CompressFeatures")


def test_a_new_task_trains_saves_and_keeps_the_tower_frozen(tmp_path):
  config = micro.config(
      "stage1", micro.write_images(tmp_path / "images"), task="compress_features",
      init_from="shapes:mllm", image_size=112, total_steps=6, sample_every_steps=0,
      optimizer__lr=1e-2, eval__sets=(), log_every_steps=1,
      param_rules=(("^(vision_tower|mlp1)/", {"train": False}),))
  train.train(config, str(tmp_path / "run"))
  losses = [row["train/loss"] for row in metrics.read(tmp_path / "run")]
  assert losses[-1] < losses[0]
  trained = sources.open_weights(str(tmp_path / "run")).load()
  chex.assert_trees_all_equal(
      trained["vision_tower"], sources.open_weights("shapes:mllm").load(["vision_tower"])["vision_tower"])
  assert np.isfinite(trained["bottleneck"]["down"]["kernel"]).all()
