"""One root moves every relative input of a config, and nothing else."""

import pytest

from unilip_jax.configs import (
  eval_geneval,
  eval_imgedit,
  eval_wise,
  gen1,
  gen2,
  gen3,
  roots,
  stage1,
  stage2,
  stage448,
)

_ROOT = "gs://bucket/unilip"


def _config(stage, size="1b", **fields):
  config = stage.get_config(size)
  config.root = _ROOT
  config.update(fields)
  return config


@pytest.mark.parametrize("stage", [stage1, stage2, stage448, gen1, gen2, gen3])
def test_every_input_of_every_stage_lies_below_the_root(stage):
  config = roots.apply(_config(stage))
  found = dict(roots.inputs(config))
  assert {"init_from", "text.tokenizer", "data.train"} <= set(found)
  assert all(path.startswith(f"{_ROOT}/") for _, path in roots.inputs(config))


def test_inputs_of_stage_2_are_all_named():
  config = roots.apply(_config(stage2))
  assert [(f, p.removeprefix(f"{_ROOT}/")) for f, p in roots.inputs(config)] == [
      ("init_from", "runs/stage1"), ("loss.perceptual_weights", "weights/perceptual"),
      ("text.tokenizer", "weights/internvl3-1b/tokenizer.json"),
      ("data.train", "data/BLIP3o-Pretrain-Short-Caption/*.tar"),
      ("data.train", "data/BLIP3o-Pretrain-Long-Caption/*.tar"),
      ("data.train", "data/BLIP3o-Pretrain-JourneyDB/*.tar"),
      ("eval.sets", "data/imagenet-val/*.tar")]  # samples come from the same files
  assert config.sample_set[2] == f"{_ROOT}/data/imagenet-val/*.tar"


@pytest.mark.parametrize("stage", [eval_geneval, eval_wise, eval_imgedit])
def test_items_of_a_benchmark_lie_below_the_root(stage):
  (*_, items, _), = stage.get_config("1b").eval.sets
  config = roots.apply(_config(stage))
  assert config.eval.sets[0][3] == f"{_ROOT}/{items}"
  assert ("eval.sets", f"{_ROOT}/{items}") in list(roots.inputs(config))


def test_judge_prompts_of_a_benchmark_lie_below_the_root_and_the_shapes_world_has_no_files():
  config = _config(gen3)
  options = {"judge_prompts": "data/prompts.json", "max_items": 8}
  config.eval.sets = (("a", "benchmark", "imgedit", "/data/items", options),
                      ("b", "benchmark", "shapes", "test:96", {}))
  roots.apply(config)
  prompts = f"{_ROOT}/data/prompts.json"
  assert config.eval.sets == (
      ("a", "benchmark", "imgedit", "/data/items", options | {"judge_prompts": prompts}),
      ("b", "benchmark", "shapes", "test:96", {}))
  sets = [path for field, path in roots.inputs(config) if field == "eval.sets"]
  assert sets == ["/data/items", prompts]


def test_lists_are_moved_part_by_part_and_other_paths_stay():
  config = _config(stage1, init_from="weights/a,/abs/b,gs://other/c,~/d,shapes:mllm")
  config.data.train = (("tar", "data/a.tar,gs://other/b.tar", 0.5), ("shapes", "train", 0.5))
  roots.apply(config)
  assert config.init_from == f"{_ROOT}/weights/a,/abs/b,gs://other/c,~/d,shapes:mllm"
  assert config.data.train == (
      ("tar", f"{_ROOT}/data/a.tar,gs://other/b.tar", 0.5), ("shapes", "train", 0.5))


@pytest.mark.parametrize("root", ["gs://bucket/unilip/", "/data/unilip", "unilip"])
def test_applied_twice_is_applied_once(root):
  config = _config(gen1, root=root)
  once = roots.apply(config).to_dict()
  assert roots.apply(config).to_dict() == once
  assert once["loss"]["perceptual_weights"] == f"{root.rstrip('/')}/weights/perceptual"


def test_without_a_root_and_at_tiny_nothing_moves():
  config = stage2.get_config("1b")
  assert roots.apply(config).to_dict() == stage2.get_config("1b").to_dict()
  tiny = roots.apply(_config(stage2, "tiny"))
  assert not list(roots.inputs(tiny))
  assert tiny.init_from == "shapes:stage1"


def test_a_locked_config_is_moved_and_stays_locked():
  config = _config(stage1).lock()
  roots.apply(config)
  assert config.is_locked
