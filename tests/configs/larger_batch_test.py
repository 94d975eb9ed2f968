"""A larger batch sees as many images, with rates by the square root and averages over as many images."""

import pytest

from unilip_jax.configs import base, gen2, larger_batch, stage2, stage448


def test_fields_of_four_times_the_batch():
  assert larger_batch.fields(stage2.get_config("1b"), 512) == {
      "batch_size": 512, "optimizer.lr": 2e-4, "optimizer.end_lr": 2e-5, "gan.lr": 2e-4, "gan.end_lr": 2e-5,
      "total_steps": 100_000, "optimizer.warmup_steps": 2500, "gan.start_step": 50_000,
      "gan.warmup_steps": 10_000, "ema_decay": 0.996006, "gan.lecam_decay": 0.996006}


def test_the_recipes_batch_changes_nothing():
  config = stage448.get_config("1b")
  for name, value in larger_batch.fields(config, config.batch_size).items():
    assert value == base.field(config, name), name


@pytest.mark.parametrize(("stage", "batch_size"), [(stage2, 192), (stage2, 64), (gen2, 1024)])
def test_other_batches_are_refused(stage, batch_size):
  with pytest.raises(ValueError, match="no multiple of"):
    larger_batch.fields(stage.get_config("1b"), batch_size)
