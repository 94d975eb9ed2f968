"""Wrong values of a config are named, all at once, before anything starts."""

import importlib

import pytest

from unilip_jax.configs import base, checks, listing

_STAGES = ("base", "stage1", "stage2", "stage448", "gen1", "gen2", "gen3", "reca", "rl_nft", "rl_grpo",
           "few_step", "tiny_mllm")


@pytest.mark.parametrize("stage", _STAGES)
@pytest.mark.parametrize("size", base.SIZES)
def test_installed_configs_pass(stage, size):
  checks.check(importlib.import_module(f"unilip_jax.configs.{stage}").get_config(size))


@pytest.mark.parametrize(("field", "value", "message"), [
    ("batch_size", 0, "choose an integer of at least 1"),
    ("total_steps", -1, "at least 0"),
    ("seed", 2**64, "a seed is an integer"),
    ("optimizer.lr", float("nan"), "finite number"),
    ("optimizer.b2", 1.0, "below 1"),
    ("text.prompt_dropout", 1.5, "at most 1"),
    ("data.max_bad_fraction", -0.1, "at least 0"),
    ("dtype", "fp16", "choose 'bfloat16' or 'float32'"),
    ("remat.vit", "all", "choose 'none' or 'dots' or 'full'"),
    ("data.crop", "centre", "'center'"),
    ("mesh.data", 0, "choose a number of devices, or -1"),
    ("init_from", "runs/a,s3://b/c", "s3:// is not supported"),
    ("resume", "gs:/b/c", "write gs://b/c"),
    ("data.index_dir", "~nobody_of_this_name/x", "no user"),
    ("data.train", "data/*.tar", "give rows"),
    ("data.train", ("tar", "data/*.tar", 1.0), "a single row needs a comma"),
    ("data.train", (("tar", "data/*.tar"),), "is not (kind, path, weight)"),
    ("data.train", (("tar", "a", 0.0),), "all weights are 0"),
    ("data.train", (("tar", "~/a/*.tar,s3://b/*.tar", 1.0),), "s3:// is not supported"),
    ("eval.sets", (("a", "224", "folder", "file:///data"),), "without a scheme: /data"),
    ("data.train", (("tar", "a", float("inf")),), "finite"),
    ("eval.sets", (("a b", "224", "tar", "x"),), "becomes part of metrics"),
    ("eval.sets", (("a", 224, "tar", "x"),), "protocol of"),
    ("reward.terms", (("shapes",),), "is not (name, weight)"),
    ("reward.terms", (("shapes", "x"),), "the weight of"),
    ("reward.old_decay", 3, "at most 2"),
    ("log.sinks", "wandb", "give names"),
    ("log.sinks", ("mlflow",), "choose 'wandb' or 'trackio'"),
    ("sample_set", ("t2i", "tar"), "(example, kind, path)"),
    ("profile_steps", (7, 5), "the first and the last step"),
    ("sample.guidance_interval", (0.8, 0.2), "the first number is above the second"),
    ("distill.zero_shares", (0.5, 2.0), "at most 1"),
    ("distill.time_means", (0.5,), "give 2 numbers"),
    ("param_rules", (("([", {"train": False}),), "no regular expression"),
    ("param_rules", None, "give rows"), ("lora.targets", None, "give rows"),
    ("param_rules", (("dit", {"train": "no"}),), "train of 'dit'='no': choose True or False"),
    ("param_rules", (("dit", {"lr": float("nan")}),), "finite number"),
    ("param_rules", (("dit", {"dtype": "int8"}),), "choose 'float32' or 'bfloat16'"),
    ("lora.targets", (("dit", {5: 1}),), "known are rank and alpha"),
    ("reward.terms", (("shapes", 0.0), ("judge", 0)), "all weights are 0"),
    ("reward.terms", (("shapes", 1.0, {5: 1}),), "the option 5 is no name"),
    ("data.edit", (("tar", "a", 1.0, {5: 1}),), "the option 5 is no name"),
    ("data.workers", 10**9, "at most 1024"), ("reward.workers", 10**9, "at most 1024"),
    ("lora.rank", 10**9, "at most 16384"),
    ("lora.targets", (("dit", {"rank": 10**9}),), "rank of 'dit'=1000000000"),
    ("lora.targets", ((b"dit", {}),), "no regular expression"),
    ("param_rules", (("a{99999999999}", {}),), "no regular expression"),
    ("total_steps", 2**31, "at most 2147483647"), ("batch_size", 10**30, "at most 1048576"),
    ("loss.l2", 1e300, "float32 holds"), ("optimizer.eps", 1e-300, "float32 holds"),
    ("optimizer.b1", 1 - 1e-12, "below 1"), ("reward.timeout", 1e30, "at most 1e+06"),
    ("distill.time_means", (1e300, 0), "float32 holds"), ("data.buckets", ((10**9, 28),), "at most 16384"),
    ("optimizer.no_decay", "bias", "give texts"), ("optimizer.no_decay", ("",), "give a name"),
    ("data.flip", "no", "True or False"), ("reward.global_std", None, "True or False"),
    ("task", ["generate"], "give a text"), ("stage", "", "give a name"),
    ("data.example", "edit", "'understand'"), ("compiler_options", "a", "'a' is not name=value"),
    ("text.system", "\ud800", "UTF-8"), ("profile_steps", 7, "the first and the last step"),
    ("profile_steps", (True, 2), "the first and the last step"),
])
def test_a_wrong_value_is_named_with_the_choices(field, value, message):
  config = base.get_config("tiny")
  with config.ignore_type():
    base.set_field(config, field, value)
  with pytest.raises(ValueError, match="--config") as error:
    checks.check(config)
  assert f"--config.{field}" in str(error.value)
  assert message in str(error.value)


@pytest.mark.parametrize("field", [
    "autoencoder", "dtype", "remat.vit", "remat.decoder", "remat.llm", "remat.dit", "loss.reduction",
    "loss.perceptual_dtype", "loss.teacher_dtype", "generate.condition", "generate.target", "data.crop",
     "data.decode", "mesh.frozen_sharding", "mesh.gather", "sample.solver", "reward.on_failure",
    "reward.solver",
    "distill.method", "reward.adv_mode", "reward.step_kind", "float32_matmul_precision", "size"])
def test_a_name_out_of_a_few_is_refused_with_them(field):
  config = base.get_config("tiny")
  base.set_field(config, field, "other")
  with pytest.raises(ValueError, match=f"--config.{field}='other': choose '"):
    checks.check(config)


def test_every_field_has_a_check():
  assert checks._CHECKS.keys() == dict(listing.flatten(base.get_config("tiny"))).keys()


_NONSENSE = (
    None, "", "x", -1, 10**9, 10**400, 1.5, float("nan"), float("inf"), True, (), (1,), ((),), (((1,),),),
    {}, {"a": 1}, b"x", "a\0b", object, [None], ("x", None), (("x", "y", "z"),), "\ud800")


@pytest.mark.parametrize("field", checks._CHECKS)
def test_nonsense_is_accepted_or_refused_by_the_name_of_its_field(field):
  unnamed = []
  for value in _NONSENSE:
    try:
      checks._CHECKS[field](f"--config.{field}", value)
    except ValueError as error:
      unnamed += [value] * (f"--config.{field}" not in str(error))
  assert not unnamed


def test_every_wrong_field_is_in_one_message():
  config = base.get_config("tiny")
  config.batch_size, config.optimizer.lr = -3, -1.0
  del config.data["crop"]
  with pytest.raises(ValueError, match=r"(?s)batch_size=-3.*lr=-1.0.*no field data.crop; start"):
    checks.check(config)


def test_every_field_is_listed_with_value_and_comment():
  config = importlib.import_module("unilip_jax.configs.gen2").get_config("tiny")
  comments = dict(listing.comments_of_base())
  fields = dict(listing.flatten(config))
  assert fields.keys() <= comments.keys()
  assert not [field for field in fields if not comments[field]]
  text = listing.text(config, "configs/gen2.py:tiny")
  for field in fields:
    assert f"--config.{field}=" in text
  assert "--config.data.edit_share=0.375\n    share of edits in a generation batch" in text
